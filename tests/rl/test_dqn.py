"""DQN and its heads: what is learned, from which targets, and how the update is undone, resumed and explored with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config import CONFIGS, load
from common.errors import ConfigError
from common.rl.actor import Seen, pack_weights
from common.rl.algorithms.base import NonFiniteUpdate, OptimizerConfig
from common.rl.algorithms.dqn import DQN
from common.rl.q_networks import QNetwork
from common.rl.replayed import Transitions, to_transitions
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec

CPU = torch.device("cpu")
THREE = EnvSpec("a", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i8", (), (3,)))
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "double dueling": {"double": True, "dueling": True},
    "c51": {"head": "c51", "atoms": 11},
    "qr": {"head": "qr", "quantiles": 7},
    "rainbow": {"double": True, "dueling": True, "noisy": 0.5, "head": "c51", "atoms": 11, "hidden": 16},
    "noisy qr": {"noisy": 0.5, "head": "qr", "quantiles": 7, "hidden": 8},
}


def make(network: dict[str, Any] | None = None, lr: float = 1e-2, **algorithm: Any) -> tuple[QNetwork, DQN]:
    actor = DQN.make_actor(algorithm, network or {}, THREE, 0)
    return actor, DQN(algorithm, OptimizerConfig(lr=lr), actor, 0)


def draw(n: int = 16, seed: int = 0) -> Arrays:
    g = np.random.default_rng(seed)
    return {
        "observation.obs": g.normal(size=(n, 4)).astype(np.float32),
        "next_observation.obs": g.normal(size=(n, 4)).astype(np.float32),
        "action": g.integers(0, 3, n),
        "reward": g.normal(size=n).astype(np.float32),
        "discount": g.choice([0.0, 0.9], n).astype(np.float32),
        "relative": g.uniform(0.5, 4.0, n).astype(np.float32),
    }


def batch(n: int = 16, seed: int = 0, **changed: np.ndarray) -> Transitions:
    return to_transitions({**draw(n, seed), **changed}, CPU)


def apart(dqn: DQN) -> torch.Tensor:
    """Moves the target network away from the online one, and gives its parameters."""
    state = dqn.state_dict()
    state["target"] += torch.randn(state["target"].shape, generator=torch.Generator().manual_seed(1))
    dqn.load_state_dict(state)
    target: torch.Tensor = state["target"]
    return target


@pytest.mark.parametrize("double", [False, True])
def test_the_update_is_that_of_the_definition(double: bool) -> None:
    actor, dqn = make(double=double, importance=0.4)
    other, _ = make()
    torch.nn.utils.vector_to_parameters(apart(dqn), other.parameters())
    given = batch()
    with torch.no_grad():
        q, q_next = (actor.evaluate(x)[..., 0].double().numpy() for x in (given.observation, given.next_observation))
        q_target = other.evaluate(given.next_observation)[..., 0].double().numpy()
    errors, weights, differ = [], [], 0
    for i in range(16):
        best = int((q_next if double else q_target)[i].argmax())
        differ += best != int((q_target if double else q_next)[i].argmax())
        errors.append(float(given.reward[i] + given.discount[i] * q_target[i, best] - q[i, given.action[i]]))
        weights.append(float(given.relative[i]) ** -0.7)
    assert differ > 0
    sizes = np.abs(errors)
    losses = np.where(sizes < 1.0, 0.5 * sizes**2, sizes - 0.5)
    metrics = dqn.learn(given, 0.5)
    assert metrics["loss"] == pytest.approx(np.mean(losses * weights / np.max(weights)), rel=1e-4)
    assert dqn.priorities is not None
    np.testing.assert_allclose(dqn.priorities.numpy(), sizes, rtol=1e-4, atol=1e-5)
    assert dqn.priorities.dtype == torch.float32


def test_the_target_begins_as_a_copy_and_is_copied_again_every_so_many_updates() -> None:
    actor, dqn = make(target_every=3)
    copies = [torch.nn.utils.parameters_to_vector(actor.parameters()).clone()]
    assert torch.equal(dqn.state_dict()["target"], copies[0])
    for update in range(6):
        dqn.learn(batch(seed=update), 0.0)
        copies.append(torch.nn.utils.parameters_to_vector(actor.parameters()).detach().clone())
        assert torch.equal(dqn.state_dict()["target"], copies[(update + 1) // 3 * 3])


def test_the_target_follows_by_a_share() -> None:
    actor, dqn = make(target_every=1, tau=0.25)
    before = dqn.state_dict()["target"]
    dqn.learn(batch(), 0.0)
    now = torch.nn.utils.parameters_to_vector(actor.parameters())
    torch.testing.assert_close(dqn.state_dict()["target"], 0.75 * before + 0.25 * now)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_trains_all_of_its_parameters(variant: str) -> None:
    actor, dqn = make(**VARIANTS[variant])
    before = {name: x.detach().clone() for name, x in actor.named_parameters()}
    metrics = dqn.learn(batch(), 0.0)
    assert all(np.isfinite(value) for value in metrics.values())
    assert [name for name, x in actor.named_parameters() if torch.equal(x, before[name])] == []
    assert dqn.priorities is not None
    assert dqn.priorities.shape == (16,)
    assert (dqn.priorities >= 0).all()


@pytest.mark.parametrize(
    ("network", "spec"),
    [
        ({"name": "nature_cnn"}, ArraySpec("o", "|u1", (2, 36, 36))),
        ({"name": "minatar_cnn"}, ArraySpec("o", "|b1", (10, 10, 4))),
        ({"normalize_observations": True}, ArraySpec("o", "<f4", (4,))),
    ],
)
def test_images_and_normalised_observations_are_learned_from(network: dict[str, Any], spec: ArraySpec) -> None:
    env = EnvSpec("a", (spec,), ActionSpec("discrete", "<i8", (), (3,)))
    actor = DQN.make_actor({}, network, env, 0)
    dqn = DQN({}, OptimizerConfig(lr=1e-2), actor, 0)
    looks = {f"{when}observation.o": np.ones((16, *spec.shape), spec.dtype) for when in ("", "next_")}
    arrays = {name: x for name, x in draw().items() if "observation" not in name}
    losses = [dqn.learn(to_transitions({**arrays, **looks}, CPU), 0.0)["loss"] for _ in range(20)]
    assert losses[-1] < losses[0]
    if actor.inputs.normalizer is not None:
        assert actor.inputs.normalizer.moments.count.item() == 320


@pytest.mark.parametrize("variant", ["plain", "c51", "qr", "rainbow"])
def test_the_values_of_a_chain_are_found(variant: str) -> None:
    # State 0: action 1 leads on for nothing, the others end with 0.25. State 1: action 2 ends with 1, others with 0.
    states, actions = np.repeat([0, 1], 3), np.tile([0, 1, 2], 2)
    looks = np.eye(4, dtype=np.float32)
    chain = {
        "observation.obs": looks[states],
        "next_observation.obs": looks[np.ones(6, int)],
        "action": actions,
        "reward": np.array([0.25, 0.0, 0.25, 0.0, 0.0, 1.0], np.float32),
        "discount": np.array([0.0, 0.5, 0.0, 0.0, 0.0, 0.0], np.float32),
        "relative": np.ones(6, np.float32),
    }
    settings = {**VARIANTS[variant], "target_every": 10}
    if settings.get("head") == "c51":
        settings |= {"v_min": -1.0, "v_max": 1.0}
    actor, dqn = make({"hidden": [32]}, lr=1e-2, **settings)
    for _ in range(400):
        dqn.learn(to_transitions(chain, CPU), 0.0)
    with torch.inference_mode():
        values = actor.head.expected(actor.evaluate({"obs": torch.from_numpy(looks[:2])}))
    np.testing.assert_allclose(values.numpy(), [[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]], atol=0.06)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_resumed_learner_computes_the_same_updates_bit_for_bit(variant: str) -> None:
    settings = {**VARIANTS[variant], "target_every": 3}
    actor, dqn = make({"normalize_observations": True}, **settings)
    for seed in range(4):
        dqn.learn(batch(seed=seed), 0.1)
    state = dqn.state_dict()
    tensors = {key: value for key, value in state["optimizer"].items() if isinstance(value, torch.Tensor)}
    json.dumps({key: value for key, value in state["optimizer"].items() if key not in tensors})
    other, resumed = make({"normalize_observations": True}, **settings)
    other.load_state_dict({key: x.clone() for key, x in actor.state_dict().items()})
    resumed.load_state_dict(state)
    for seed in range(4, 8):
        assert dqn.learn(batch(seed=seed), 0.2) == resumed.learn(batch(seed=seed), 0.2)
        np.testing.assert_array_equal(pack_weights(actor), pack_weights(other))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("array", ["reward", "observation.obs", "next_observation.obs"])
def test_an_update_that_is_not_finite_changes_nothing(variant: str, array: str) -> None:
    actor, dqn = make({"normalize_observations": True}, target_every=1, **VARIANTS[variant])
    dqn.learn(batch(), 0.0)
    weights, state = pack_weights(actor), dqn.state_dict()
    bad = draw()[array]
    # One that is drawn on: it does not end.
    bad[int(np.flatnonzero(draw()["discount"])[0])] = np.nan
    with pytest.raises(NonFiniteUpdate):
        dqn.learn(batch(**{array: bad}), 0.0)
    np.testing.assert_array_equal(pack_weights(actor), weights)
    torch.testing.assert_close(dqn.state_dict(), state, rtol=0, atol=0)


def test_acting_is_uniform_until_the_first_update_and_follows_the_schedule_then() -> None:
    _, dqn = make(epsilon={"start": 1.0, "end": 0.0, "steps": 100})
    assert dqn.acting(50, 0.0)["uniform"] == 1.0
    dqn.learn(batch(), 0.0)
    assert dqn.acting(50, 0.0) == {"uniform": 0.0, "epsilon": 0.5}


def test_both_networks_look_at_observations_through_the_same_statistics() -> None:
    # A target that is a copy after every update judges as the online network does.
    results = []
    for double in (False, True):
        _, dqn = make({"normalize_observations": True}, double=double, target_every=1)
        results.append([dqn.learn(batch(seed=seed), 0.0)["loss"] for seed in range(3)])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_each_update_has_noise_of_its_own() -> None:
    _, dqn = make(lr=1e-12, **VARIANTS["rainbow"])
    losses = [dqn.learn(batch(), 0.0)["loss"] for _ in range(2)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_what_is_learned_and_what_values_it_have_noise_of_their_own() -> None:
    one = EnvSpec("a", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i8", (), (1,)))
    actor = DQN.make_actor({"noisy": 0.5}, {}, one, 0)
    dqn = DQN({"noisy": 0.5}, OptimizerConfig(), actor, 0)
    # Each state leads to itself for nothing: under the same noise there is nothing to learn.
    looks, zeros = draw()["observation.obs"], np.zeros(16, np.float32)
    still = batch(**{"next_observation.obs": looks, "action": np.zeros(16, np.int64)}, reward=zeros, discount=zeros + 1)
    assert dqn.learn(still, 0.0)["loss"] > 1e-3


def test_what_chooses_and_what_values_have_noise_of_their_own() -> None:
    # The target is still a copy: under the same noise, choosing by either is choosing by both.
    losses = [make(noisy=5.0, double=double)[1].learn(batch(), 0.0)["loss"] for double in (False, True)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_noise_makes_an_update_another_for_another_seed_and_else_the_same() -> None:
    settings = VARIANTS["rainbow"]
    losses = []
    for seed in (0, 0, 1):
        actor = DQN.make_actor(settings, {}, THREE, 0)
        losses.append(DQN(settings, OptimizerConfig(), actor, seed).learn(batch(), 0.0)["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_what_acts_ships_no_target_and_no_support() -> None:
    actor, _ = make(head="c51", atoms=11)
    assert len(actor.state_dict()) == len(list(actor.parameters()))


@pytest.mark.parametrize(
    ("network", "algorithm", "message"),
    [
        ({"lstm": 8}, {}, r"network\.lstm=8 wants sequences"),
        ({"last_reward": True}, {}, r"network\.last_reward=True wants sequences"),
        ({}, {"head": "c51", "v_min": 1.0, "v_max": 1.0}, r"algorithm\.v_min=1\.0 is not below"),
        ({}, {"v_max": 1.0}, r"algorithm\.v_max=1\.0 does nothing with algorithm\.head=q \(leave it out"),
        ({}, {"atoms": 11}, r"algorithm\.atoms=11 does nothing with algorithm\.head=q"),
        ({}, {"head": "c51", "quantiles": 7}, r"algorithm\.quantiles=7 does nothing with algorithm\.head=c51"),
        ({}, {"head": "c51", "huber": 2.0}, r"algorithm\.huber=2\.0 does nothing with algorithm\.head=c51"),
        ({}, {"head": "qr", "v_min": -1.0}, r"algorithm\.v_min=-1\.0 does nothing with algorithm\.head=qr"),
        (
            {},
            {"epsilon": {"actors": 4, "end": 0.5}},
            r"epsilon\.end=0\.5 does nothing with .*epsilon\.actors=4",
        ),
        (
            {},
            {"epsilon": {"actors": 4, "steps": 9}},
            r"epsilon\.steps=9 does nothing with .*epsilon\.actors=4",
        ),
        ({}, {"epsilon": {"steps": 9, "share": 0.5}}, r"epsilon\.share=0\.5 does nothing with .*epsilon\.steps=9"),
        ({}, {"epsilon": {"base": 0.5}}, r"epsilon\.base=0\.5 does nothing with algorithm\.epsilon\.actors=0"),
        ({}, {"duel": True}, r"algorithm\.duel.*did you mean dueling\?"),
        ({}, {"epsilon": {"last": 0.1}}, r"algorithm\.epsilon\.last"),
    ],
)
def test_a_setting_that_cannot_be_is_named(network: dict[str, Any], algorithm: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DQN.make_actor(algorithm, network, THREE, 0)


def test_a_setting_that_is_not_looked_at_may_be_given_as_it_is_anyway() -> None:
    DQN.make_actor({"v_max": 10.0, "epsilon": {"actors": 4, "end": 0.01}}, {}, THREE, 0)


OVERLAYS = [path for path in sorted(CONFIGS.glob("*.yaml")) if load(path, (), {}).algorithm["name"] == "dqn"]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_each_overlay_of_the_family_builds_and_acts(path: Path) -> None:
    config = load(path, (), {})
    algorithm = {key: value for key, value in config.algorithm.items() if key != "name"}
    shape, dtype = ((10, 10, 4), "|b1") if "minatar" in path.stem else ((4,), "<f4")
    env = EnvSpec("a", (ArraySpec("obs", dtype, shape),), ActionSpec("discrete", "<i8", (), (3,)))
    actor = DQN.make_actor(algorithm, config.network, env, 0)
    seen = Seen(
        {"obs": torch.from_numpy(np.zeros((2, *shape), dtype))},
        torch.zeros(2, dtype=torch.bool),
        torch.zeros(2),
        {},
        torch.full((2, actor.noise_size), 0.5),
        torch.arange(2),
    )
    actor.acting = DQN(algorithm, OptimizerConfig(), actor, 0).acting(0, 0.0)
    acted = actor.act(seen)
    assert acted.action.tolist() == [1, 1]
    assert sorted(acted.extras) == sorted(spec.name for spec in actor.spec.extras)
