from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from common.errors import ConfigError
from common.rl.actor import pack_weights
from common.rl.algorithms.base import OptimizerConfig
from common.rl.algorithms.curiosity import Curiosity, CuriosityConfig
from common.rl.batch import to_batch
from common.rl.policy import build_policy
from common.rl.registry import algorithm_class
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec

CPU = torch.device("cpu")
Record = Callable[..., Arrays]
VECTOR = ArraySpec("obs", "<f4", (4,))


def curiosity(spec: EnvSpec, **config: Any) -> Curiosity:
    return Curiosity(CuriosityConfig(hidden=32, **config), spec, 0, CPU)


def wheel(seed: int, known: bool = True, steps: int = 32, columns: int = 8) -> Arrays:
    """Four places on a wheel, action 0 turns it back and 1 on; or, if not `known`, places are drawn at random."""
    draw = np.random.default_rng(seed)
    action = draw.integers(0, 2, (steps, columns))
    turns = np.cumsum(np.concatenate([draw.integers(0, 4, (1, columns)), 2 * action - 1]), axis=0)
    place = turns % 4 if known else draw.integers(0, 4, (steps + 1, columns))
    no = np.zeros((steps, columns), bool)
    return {
        "observation.obs": np.eye(4, dtype=np.float32)[place],
        "first": np.zeros((steps + 1, columns), bool),
        "action": action,
        "reward": np.zeros((steps, columns), np.float32),
        "terminated": no,
        "truncated": no.copy(),
    }


def test_a_wrong_encoder_is_named_as_curiositys_own(cartpole: EnvSpec) -> None:
    with pytest.raises(ConfigError, match=r"^algorithm\.curiosity\.network\.name: there is no 'nope'"):
        curiosity(cartpole, network={"name": "nope"})


def test_what_was_not_to_be_foretold_is_rewarding(cartpole: EnvSpec) -> None:
    module = curiosity(cartpole)
    for seed in range(150):
        _, metrics = module.learn(to_batch(wheel(seed), CPU))
    assert metrics["inverse_loss"] < 0.1
    arrays = wheel(1000)
    # Two places on is where neither action leads.
    arrays["observation.obs"][11:, 3] = np.roll(arrays["observation.obs"][11:, 3], 2, axis=-1)
    reward, _ = module.learn(to_batch(arrays, CPU))
    assert reward.argmax().item() == 10 * 8 + 3
    assert reward[10, 3] > 5 * reward.median()


def test_the_reward_is_the_weighted_error_of_the_forward_model(cartpole: EnvSpec) -> None:
    batch = to_batch(wheel(0), CPU)
    one, three = curiosity(cartpole, weight=1.0), curiosity(cartpole, weight=3.0)
    reward, metrics = one.learn(batch)
    assert reward.mean().item() == pytest.approx(metrics["forward_loss"].item(), rel=1e-5)
    torch.testing.assert_close(three.learn(batch)[0], 3.0 * reward)


@pytest.mark.parametrize("forward", [True, False])
def test_each_loss_trains_its_own_model_by_its_share_and_the_encoder_learns_from_the_inverse_one_alone(
    forward: bool, cartpole: EnvSpec
) -> None:
    module = curiosity(cartpole, forward_weight=1.0 - 1e-12 if forward else 1e-12, lr=1e-3)
    before = module.state_dict()["parameters"]
    module.learn(to_batch(wheel(0), CPU))
    moved = (module.state_dict()["parameters"] - before).abs()
    # The forward model's are the last: from 64 features and 2 actions to 32, from 32 to 64.
    size = (66 + 1) * 32 + (32 + 1) * 64
    others, foretell = moved[:-size].max().item(), moved[-size:].max().item()
    # Adam's first step is its learning rate.
    assert [others, foretell] == pytest.approx([0.0, 1e-3] if forward else [1e-3, 0.0], abs=1e-5)


def test_observations_are_normalised_by_those_before_this_batch_and_that_is_saved(cartpole: EnvSpec) -> None:
    arrays = wheel(0)
    small = {**arrays, "observation.obs": 1e-3 * arrays["observation.obs"] + 7.0}
    plain, normal = curiosity(cartpole), curiosity(cartpole, network={"normalize_observations": True})
    first, _ = normal.learn(to_batch(small, CPU))
    torch.testing.assert_close(first, plain.learn(to_batch(small, CPU))[0])
    moments, seen = normal.state_dict()["inputs"], small["observation.obs"][:-1].reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(moments["normalizer.moments.mean"], seen.mean(0), rtol=1e-9)
    np.testing.assert_allclose(moments["normalizer.moments.var"], seen.var(0), rtol=1e-6)
    again = curiosity(cartpole, network={"normalize_observations": True})
    again.load_state_dict(normal.state_dict())
    rewards = [module.learn(to_batch(small, CPU))[0] for module in (normal, again)]
    torch.testing.assert_close(rewards[0], rewards[1], atol=0, rtol=0)
    # Two actions tell errors apart; four places only do where they are normalised.
    kinds = [reward.round(decimals=3).unique().numel() for reward in (plain.learn(to_batch(small, CPU))[0], rewards[0])]
    assert kinds == [2, 8]


def test_a_step_whose_next_observation_is_not_known_earns_nothing(cartpole: EnvSpec) -> None:
    arrays = wheel(0)
    arrays["first"][5, 2] = True
    arrays["first"][9, 3] = True
    arrays["final_index"] = np.array([8 * 8 + 3], np.int32)
    arrays["final.obs"] = np.full((1, 4), 50.0, np.float32)
    arrays["valid"] = np.ones((32, 8), bool)
    arrays["valid"][20, 1] = False
    reward, _ = curiosity(cartpole).learn(to_batch(arrays, CPU))
    assert (reward == 0.0).nonzero().tolist() == [[4, 2], [20, 1]]
    assert reward.argmax().item() == 8 * 8 + 3


def test_any_number_of_last_observations_makes_few_sizes(cartpole: EnvSpec) -> None:
    module, arrays, sizes = curiosity(cartpole), wheel(0), set()
    with register_module_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0]))):
        for k in (3, 5, 9):
            arrays["final_index"] = np.arange(k, dtype=np.int32)
            arrays["final.obs"] = np.zeros((k, 4), np.float32)
            module.learn(to_batch(arrays, CPU))
    assert {4, 8, 16} <= sizes
    assert not sizes & {3, 5, 9}


@pytest.mark.parametrize(
    "action",
    [
        ActionSpec("multi_discrete", "<i8", (2,), (3, 2)),
        ActionSpec("box", "<f4", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
    ],
    ids=["multi_discrete", "box"],
)
def test_every_kind_of_action_can_be_read_off(action: ActionSpec, record: Record) -> None:
    spec = EnvSpec("a", (VECTOR, ArraySpec("pixels", "|u1", (10, 10, 3))), action)
    module = curiosity(spec, network={"name": "minatar_cnn"})
    batch = to_batch(record(build_policy({}, spec, 0), spec), CPU)
    first = module.learn(batch)[1]["inverse_loss"]
    for _ in range(20):
        last = module.learn(batch)[1]["inverse_loss"]
    assert last < first


@pytest.mark.parametrize("name", ["a2c", "ppo", "appo", "impala", "laser"])
def test_the_policy_learns_from_the_intrinsic_reward_as_from_the_environments(
    name: str, cartpole: EnvSpec, record: Record
) -> None:
    kind = algorithm_class(name)
    arrays = record(kind.make_actor({}, {}, cartpole, 0), cartpole)
    intrinsic, _ = curiosity(cartpole, weight=1.0).learn(to_batch(arrays, CPU))

    def learned(arrays: Arrays, **section: Any) -> tuple[dict[str, float], np.ndarray]:
        policy = kind.make_actor(section, {}, cartpole, 0)
        metrics = kind(section, OptimizerConfig(), policy, 0).learn(to_batch(arrays, CPU), 0.0)
        return metrics, pack_weights(policy)

    metrics, curious = learned(arrays, curiosity={"hidden": 32, "weight": 1.0})
    assert metrics["intrinsic_reward"] == pytest.approx(intrinsic[intrinsic > 0.0].mean().item(), rel=1e-5)
    without, plain = learned(arrays)
    assert "intrinsic_reward" not in without
    _, told = learned({**arrays, "reward": arrays["reward"] + intrinsic.numpy()})
    np.testing.assert_array_equal(curious, told)
    assert (curious != plain).any()


def test_an_action_mask_is_nothing_to_be_curious_about() -> None:
    env = EnvSpec("a", (VECTOR, ArraySpec("mask", "|u1", (2,))), ActionSpec("discrete", "<i8", (), (2,)))
    make = algorithm_class("ppo")
    policy = make.make_actor({}, {"action_mask": "mask"}, env, 0)
    learner = make({"curiosity": {"hidden": 8}}, OptimizerConfig(), policy, 0)
    # Its encoder's first layer takes the vector alone.
    bare = make.make_actor({}, {}, EnvSpec("a", (VECTOR,), env.action), 0)
    other = make({"curiosity": {"hidden": 8}}, OptimizerConfig(), bare, 0)
    ours, theirs = (x.state_dict()["curiosity"]["parameters"].shape for x in (learner, other))
    assert ours == theirs
