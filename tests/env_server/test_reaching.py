import gymnasium
import numpy as np

from common.config import EnvConfig
from services.env_server.backends import make_backend
from services.env_server.backends.reaching import make, reward


def test_the_reward_says_only_whether_the_fingertip_is_within_2_cm() -> None:
    achieved = np.array([[0.1, 0.1], [0.1, 0.1], [0.0, 0.0]], np.float32)
    desired = np.array([[0.1, 0.119], [0.1, 0.121], [0.3, 0.4]], np.float32)
    assert reward(achieved, desired).tolist() == [0.0, -1.0, -1.0]


def test_the_fingertip_is_where_the_simulator_has_it() -> None:
    env = make()
    model = env.unwrapped
    shown, _ = env.reset(seed=5)
    for _ in range(3):
        assert env.observation_space.contains(shown)
        np.testing.assert_allclose(shown["achieved_goal"], model.get_body_com("fingertip")[:2], atol=1e-6)
        np.testing.assert_allclose(shown["desired_goal"], model.get_body_com("target")[:2], atol=1e-6)
        shown, given, *_ = env.step(np.array([0.5, -1.0], np.float32))
        assert given == reward(shown["achieved_goal"], shown["desired_goal"]) == -1.0


def test_joints_are_shown_and_nothing_else_of_the_plain_observation() -> None:
    shown, plain = make().reset(seed=2)[0], gymnasium.make("Reacher-v5").reset(seed=2)[0]
    np.testing.assert_allclose(shown["observation"], plain[[0, 1, 2, 3, 6, 7]], atol=1e-6)


def test_a_job_finds_it_by_its_path() -> None:
    backend = make_backend(EnvConfig(id="services.env_server.backends.reaching:make"), 2)
    assert [spec.name for spec in backend.spec.observations] == ["achieved_goal", "desired_goal", "observation"]
    backend.close()
