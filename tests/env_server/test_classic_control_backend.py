"""Our classic control is Gymnasium's: the same states, observations, rewards and endings, bit for bit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest

from common.config import EnvConfig
from services.env_server.backends import NO_FINALS, Finals, make_backend
from services.env_server.backends import gymnasium as gymnasium_backend
from services.env_server.backends.classic_control import ClassicControl

IDS = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
# Where the rows of `dynamics.state` stand in the plain environment's state.
ORDER = {"CartPole-v1": [0, 2, 1, 3]}

Policy = Callable[[np.ndarray], np.ndarray]


class Steps:
    """A backend and the arrays of its last step."""

    def __init__(self, env_id: str, num_envs: int, seed: int, **kwargs: Any) -> None:
        backend = make_backend(EnvConfig(id=env_id, kwargs=kwargs), num_envs)
        assert isinstance(backend, ClassicControl)
        self.backend = backend
        self.observation = np.full((num_envs, *backend.spec.observations[0].shape), np.nan, np.float32)
        self.reward = np.full(num_envs, np.nan, np.float32)
        self.terminated, self.truncated, self.valid = np.zeros((3, num_envs), np.bool_)
        self.finals = NO_FINALS
        self.backend.reset(seed, {"obs": self.observation})

    def step(self, action: np.ndarray) -> Finals:
        self.valid.fill(False)
        flags = (self.terminated, self.truncated, self.valid)
        self.finals = self.backend.step(action, {"obs": self.observation}, self.reward, *flags)
        assert self.valid.all()
        return self.finals

    def state(self, b: int) -> np.ndarray:
        state = self.backend.dynamics.state[:, b]
        return state[ORDER.get(self.backend.spec.id, slice(None))].copy()


@dataclass
class Drawn:
    """Stands in a plain environment for its generator: it "draws" the state that ours began with."""

    state: np.ndarray

    def uniform(self, low: Any, high: Any, size: Any = None) -> Any:
        drawn = self.state if size or np.ndim(low) else self.state[0]
        assert (low <= drawn).all()
        assert (drawn <= high).all()
        return drawn


class Twin:
    """One plain environment that begins each episode in the state of ours."""

    def __init__(self, env_id: str, **kwargs: Any) -> None:
        self.env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)

    def begin(self, steps: Steps, b: int) -> None:
        self.env.unwrapped.np_random = Drawn(steps.state(b))  # type: ignore[assignment]
        first, _ = self.env.reset()
        assert first.tolist() == steps.observation[b].tolist()

    def step(self, action: np.ndarray, steps: Steps, b: int, final: np.ndarray | None) -> None:
        """Steps by the same action; what the backend wrote must be the same, to the last bit."""
        space = self.env.action_space
        put = np.clip(action, space.low, space.high) if isinstance(space, gymnasium.spaces.Box) else int(action)
        seen, reward, terminated, truncated, _ = self.env.step(put)
        assert (terminated, truncated) == (steps.terminated[b], steps.truncated[b])
        assert steps.reward[b] == np.float32(reward)
        assert (final is None) == (not (terminated or truncated))
        assert seen.tolist() == (steps.observation[b] if final is None else final).tolist()
        if final is None:
            assert np.array(self.env.unwrapped.state).tolist() == steps.state(b).tolist()  # type: ignore[attr-defined]


def compare(env_id: str, policy: Policy, count: int, num_envs: int, **kwargs: Any) -> Counter[str]:
    """Steps ours and Gymnasium's side by side `count` times; gives how many episodes ended, and how."""
    steps = Steps(env_id, num_envs, 5, **kwargs)
    twins = [Twin(env_id, **kwargs) for _ in range(num_envs)]
    for b, twin in enumerate(twins):
        twin.begin(steps, b)
    endings: Counter[str] = Counter()
    for _ in range(count):
        action = policy(steps.observation)
        finals = steps.step(action)
        last = dict(zip(finals.indices.tolist(), finals.observation.get("obs", ()), strict=True))
        for b, twin in enumerate(twins):
            twin.step(action[b], steps, b, last.get(b))
            if b in last:
                both = steps.terminated[b] and steps.truncated[b]
                endings["both" if both else "terminated" if steps.terminated[b] else "truncated"] += 1
                twin.begin(steps, b)
    return endings


def at_random(env_id: str) -> Policy:
    rng = np.random.default_rng(0)
    action = gymnasium_backend.make_backend(EnvConfig(id=env_id), 1).spec.action
    if action.kind == "discrete":
        return lambda seen: rng.integers(0, action.n[0], len(seen))
    # Beyond the bounds too, where an action is clipped.
    return lambda seen: rng.uniform(-3, 3, (len(seen), 1)).astype(np.float32)


# Controllers that reach what chance does not: a pole held up, a car on its hill, a link above the line, a full turn.
SCRIPTS: dict[str, Policy] = {
    "CartPole-v1": lambda seen: (seen @ np.array([0.1, 0.5, 5.0, 1.0]) > 0).astype(np.int64),
    "Acrobot-v1": lambda seen: np.where(seen[:, 4] > 0, 0, 2),
    "Pendulum-v1": lambda seen: np.where(seen[:, 2:] > 0, np.float32(1.9), np.float32(-5)),
    "MountainCar-v0": lambda seen: np.where(seen[:, 1] > 0, 2, 0),
    "MountainCarContinuous-v0": lambda seen: np.where(seen[:, 1:] > 0, np.float32(0.9), np.float32(-5)),
}


@pytest.mark.parametrize("env_id", IDS)
def test_random_actions_lead_where_they_lead_in_gymnasium(env_id: str) -> None:
    endings = compare(env_id, at_random(env_id), 4000, 4)
    assert sum(endings.values()) >= 4


@pytest.mark.parametrize(
    ("env_id", "how", "least"),
    [
        ("CartPole-v1", "truncated", 6),
        ("Acrobot-v1", "terminated", 10),
        ("Pendulum-v1", "truncated", 15),
        ("MountainCar-v0", "terminated", 10),
        ("MountainCarContinuous-v0", "terminated", 10),
    ],
)
def test_scripted_actions_reach_the_goals_and_the_limits_of_gymnasium(env_id: str, how: str, least: int) -> None:
    endings = compare(env_id, SCRIPTS[env_id], 1000, 3)
    assert endings.keys() == {how}
    assert endings[how] >= least


def test_a_cart_may_leave_its_track_at_either_end() -> None:
    # Held upright with a lean, which drives one cart to the left end and the other to the right.
    lean = np.array([0.3, -0.3])
    edges: list[float] = []

    def lean_out(seen: np.ndarray) -> np.ndarray:
        edges.extend(seen[np.abs(seen[:, 0]) > 2.3, 0].tolist())
        return np.where(seen @ np.array([0.0, 0.0, 5.0, 1.0]) + lean > 0, 1, 0)

    assert compare("CartPole-v1", lean_out, 500, 2).keys() == {"terminated"}
    assert min(edges) < 0 < max(edges)


def test_an_episode_may_terminate_in_the_step_that_its_limit_cuts() -> None:
    endings = compare("CartPole-v1", lambda seen: np.ones(len(seen), np.int64), 100, 16, max_episode_steps=9)
    assert min(endings[how] for how in ("terminated", "both", "truncated")) > 10


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("CartPole-v1", {"sutton_barto_reward": True}),
        ("Pendulum-v1", {"g": 9.81, "max_episode_steps": 60}),
        ("MountainCar-v0", {"goal_velocity": 0.03}),
        ("MountainCarContinuous-v0", {"goal_velocity": 0.03, "max_episode_steps": 150}),
    ],
)
def test_arguments_of_the_constructor_mean_what_they_mean_in_gymnasium(env_id: str, kwargs: dict[str, Any]) -> None:
    assert sum(compare(env_id, SCRIPTS[env_id], 600, 2, **kwargs).values()) >= 2


@pytest.mark.parametrize("env_id", IDS)
def test_the_spec_is_the_one_of_the_gymnasium_backend(env_id: str) -> None:
    config = EnvConfig(id=env_id, frame_skip=2)
    assert make_backend(config, 2).spec == gymnasium_backend.make_backend(config, 2).spec


@pytest.mark.parametrize("env_id", IDS)
def test_the_same_seed_gives_the_same_experience_and_another_seed_does_not(env_id: str) -> None:
    seen = []
    for seed in (1, 1, 2):
        policy, steps = at_random(env_id), Steps(env_id, 8, seed, max_episode_steps=20)
        for _ in range(50):
            steps.step(policy(steps.observation))
        seen.append(steps.observation)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0] != seen[2]).any(axis=1).all()
    assert len(np.unique(seen[0], axis=0)) == 8


def test_a_second_reset_starts_every_episode_and_its_clock_anew() -> None:
    steps = Steps("Pendulum-v1", 2, 1, max_episode_steps=5)
    push = np.ones((2, 1), np.float32)
    for _ in range(3):
        steps.step(push)
    steps.backend.reset(1, {"obs": steps.observation})
    cut = [bool(len(steps.step(push).indices)) for _ in range(10)]
    assert cut == [False, False, False, False, True] * 2


def test_an_episode_without_a_limit_is_not_cut() -> None:
    steps = Steps("Pendulum-v1", 2, 1, max_episode_steps=-1)
    push = np.ones((2, 1), np.float32)
    assert not any(len(steps.step(push).indices) for _ in range(250))


@pytest.mark.parametrize(("kwargs", "render_mode"), [({"g": None}, None), ({}, "rgb_array")])
def test_what_is_not_vectorised_is_left_to_gymnasium_and_said(
    kwargs: dict[str, Any], render_mode: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "headrace.env"):
        backend = make_backend(EnvConfig(id="Pendulum-v1", kwargs=kwargs), 1, render_mode)
    assert isinstance(backend, gymnasium_backend.LoopBackend)
    assert [record.message.startswith("Pendulum-v1 is left to Gymnasium") for record in caplog.records] == [True]
