import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ProtocolError, RemoteError
from common.messages import Act, Weights
from common.rl.actor import Acted, Actor, Seen, pack_weights, weights_layout
from common.rl.policy import build_policy
from common.types import ActionSpec, ArraySpec, EnvSpec, PolicySpec, make_version
from services.inference_server.runner import Runner

SPEC = EnvSpec("Walk-v0", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i8", (), (3,)))
GOOD = {
    "observation.obs": np.zeros((2, 4), np.float32),
    "first": np.zeros(2, bool),
    "reward": np.zeros(2, np.float32),
}
MLP: dict[str, Any] = {"name": "mlp", "hidden": [8]}
LSTM: dict[str, Any] = {"name": "mlp", "hidden": [8], "lstm": 8, "last_action": True, "last_reward": True}
PPO: dict[str, Any] = {"name": "ppo"}


class Cautious(Actor):
    """Acts on what only exploration needs: the scalars of a version, the environment's number and the reward."""

    spec = PolicySpec()
    noise_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.acting = {}
        self.dial = torch.nn.Parameter(torch.zeros(1))

    def act(self, seen: Seen, greedy: bool = False) -> Acted:
        assert seen.noise.shape[1] == 2
        return Acted(seen.env * 100 + seen.reward.long() * 10 + int(self.acting["epsilon"]), {}, {})


class Cautiously:
    """An algorithm of one's own, of which an inference-server needs only this."""

    @staticmethod
    def make_actor(algorithm: dict[str, Any], network: dict[str, Any], env: EnvSpec, seed: int) -> Actor:
        assert algorithm == {"boldness": 1}
        return Cautious()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(network: dict[str, Any], seed: int = 1, version: int = 5, spec: EnvSpec = SPEC) -> Weights:
    policy = build_policy(network, spec, seed)
    layout = json.dumps([network, weights_layout(policy)])
    return Weights(version, spec.to_wire(), policy.spec.to_wire(), layout, {}, {"weights": pack_weights(policy)})


def runner(network: dict[str, Any] = MLP, seed: int = 3) -> Runner:
    made = Runner(PPO, network, seed, "cpu")
    made.load(weights(network))
    return made


def act(made: Runner, first_env: int, count: int, step: int = 0) -> Act:
    draw = np.random.default_rng(first_env + 1000 * step)
    assert made.spec is not None
    arrays = {"observation.obs": draw.normal(size=(count, 4)).astype(np.float32), "first": draw.random(count) < 0.5}
    arrays["reward"] = draw.normal(size=count).astype(np.float32)
    arrays |= {f"state.{s.name}": draw.random(size=(count, *s.shape)).astype(s.dtype) for s in made.spec.state}
    return Act(first_env, count, step, 0, arrays)


@pytest.mark.parametrize("network", [MLP, LSTM], ids=["mlp", "lstm"])
def test_requests_share_a_pass_and_each_gets_what_it_would_get_alone(network: dict[str, Any]) -> None:
    made = runner(network)
    acts = [act(made, 0, 3), act(made, 40, 1, step=7), act(made, 8, 5, step=2)]
    together = made.act(acts)
    assert [len(reply.arrays["action"]) for reply in together] == [3, 1, 5]
    for request, reply in zip(acts, together, strict=True):
        (alone,) = made.act([request])
        assert reply.version == alone.version == 5
        assert reply.arrays.keys() == alone.arrays.keys()
        assert reply.arrays["action"].tolist() == alone.arrays["action"].tolist()
        for name, array in alone.arrays.items():
            np.testing.assert_allclose(reply.arrays[name], array, rtol=1e-5, atol=1e-6)
    assert {name.partition(".")[0] for name in together[0].arrays} == (
        {"action", "extras"} if network is MLP else {"action", "extras", "state"}
    )


def test_noise_follows_the_environment_and_the_step_and_nothing_else() -> None:
    made, observation = runner(), np.zeros((50, 4), np.float32)

    def actions(first_env: int, step: int) -> list[int]:
        arrays = {"observation.obs": observation, "first": np.zeros(50, bool), "reward": np.zeros(50, np.float32)}
        found: list[int] = made.act([Act(first_env, 50, step, 0, arrays)])[0].arrays["action"].tolist()
        return found

    assert actions(0, 0) == actions(0, 0)
    assert actions(0, 0)[10:] == actions(10, 0)[:40]
    assert actions(0, 0) != actions(0, 1)
    assert actions(0, 0) != actions(50, 0)
    other = runner(seed=4)
    arrays = {"observation.obs": observation, "first": np.zeros(50, bool), "reward": np.zeros(50, np.float32)}
    assert other.act([Act(0, 50, 0, 0, arrays)])[0].arrays["action"].tolist() != actions(0, 0)


def test_weights_of_a_network_of_the_same_size_but_another_kind_are_refused() -> None:
    made = runner()
    with pytest.raises(RemoteError, match=r"the learner's network is .*tanh.*this inference-server's is"):
        made.load(weights({**MLP, "activation": "tanh"}))


def test_new_weights_take_the_place_of_the_old_ones() -> None:
    made = runner()
    request = act(made, 0, 4)
    before = made.act([request])[0]
    made.load(weights(MLP, seed=2, version=6))
    after = made.act([request])[0]
    assert (before.version, after.version) == (5, 6)
    assert not np.array_equal(before.arrays["extras.log_prob"], after.arrays["extras.log_prob"])


def test_a_network_unlike_the_learners_is_refused_naming_both() -> None:
    made = Runner(PPO, {"name": "mlp", "hidden": [16]}, 3, "cpu")
    with pytest.raises(
        RemoteError, match=r"the learner's network is .*\[8, 4\].* inference-server's is .*\[16, 4\]"
    ) as e:
        made.load(weights(MLP, version=make_version(1, 0)))
    assert e.value.exit_code == 2
    assert made.spec is None
    assert made.version == -1


def test_weights_for_another_environment_build_another_policy() -> None:
    made = runner()
    other = EnvSpec("Fly-v0", (ArraySpec("obs", "<f4", (6,)),), ActionSpec("box", "<f4", (2,), (), (-1, -1), (1, 1)))
    made.load(weights(MLP, spec=other, version=1 << 40))
    assert made.env == other
    arrays = {**GOOD, "observation.obs": np.zeros((2, 6), np.float32)}
    assert made.act([Act(0, 2, 0, 0, arrays)])[0].arrays["action"].shape == (2, 2)


def test_any_algorithms_actor_acts_with_the_scalars_of_its_weights() -> None:
    actor = Cautious()
    layout = json.dumps([{}, weights_layout(actor)])
    made = Runner({"name": f"{__name__}:Cautiously", "boldness": 1}, {}, 3, "cpu")
    for version, epsilon in ((1, 4.0), (2, 7.0)):
        arrays = {"weights": pack_weights(actor)}
        made.load(Weights(version, SPEC.to_wire(), actor.spec.to_wire(), layout, {"epsilon": epsilon}, arrays))
        requests = [Act(8, 2, 0, 0, {**GOOD, "reward": np.array([1, 2], np.float32)}), Act(3, 2, 9, 0, GOOD)]
        replies = [reply.arrays["action"].tolist() for reply in made.act(requests)]
        assert replies == [[810 + epsilon, 920 + epsilon], [300 + epsilon, 400 + epsilon]]


def test_a_request_as_the_policy_wants_it_is_taken() -> None:
    runner().check(Act(0, 2, 0, 0, {**GOOD, "more": np.zeros(9)}))


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Act(0, 0, 0, 0, GOOD), "an Act for 0 environments from 0 on"),
        (Act(0, -2, 0, 0, GOOD), "an Act for -2 environments"),
        (Act(-1, 2, 0, 0, GOOD), "from -1 on"),
        (Act((1 << 63) - 3, 2, 0, 0, GOOD), "environments from 9223372036854775805 on"),
        (Act(0, 3, 0, 0, GOOD), r"float32 \(2, 4\) as observation.obs, the policy takes float32 \(3, 4\)"),
        (
            Act(0, 2, 0, 0, {**GOOD, "reward": np.zeros(2)}),
            r"float64 \(2,\) as reward, the policy takes float32 \(2,\)",
        ),
        (Act(0, 2, 0, 0, {"first": GOOD["first"]}), "nothing as observation.obs, the policy takes float32"),
        (Act(0, 2, 0, 0, {**GOOD, "first": np.zeros(2, np.uint8)}), r"uint8 \(2,\) as first, the policy takes bool"),
        (Act(0, 2, 0, 0, {**GOOD, "observation.obs": np.zeros((2, 5), np.float32)}), r"float32 \(2, 5\) as obs"),
        (Act(0, 2, 0, 0, {**GOOD, "observation.obs": np.zeros((2, 4))}), r"float64 \(2, 4\) as observation.obs"),
    ],
)
def test_a_request_that_the_policy_cannot_answer_is_refused_naming_both_sides(request_: Act, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        runner().check(request_)


def test_a_request_without_the_state_of_a_recurrent_policy_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"nothing as state\.h, the policy takes float32"):
        runner(LSTM).check(Act(0, 2, 0, 0, GOOD))
