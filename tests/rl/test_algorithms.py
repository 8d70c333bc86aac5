"""What every algorithm must hold: it learns on every kind of space, resumes bit for bit, and undoes a bad update."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rl.kinds import KINDS

from common.errors import ConfigError
from common.rl.actor import pack_weights
from common.rl.algorithms.base import Algorithm, FlatOptimizer, NonFiniteUpdate, OptimizerConfig, scheduled
from common.rl.batch import to_batch
from common.rl.policy import Policy, build_policy
from common.rl.registry import algorithm_class
from common.types import Arrays

CPU = torch.device("cpu")
Record = Callable[..., Arrays]
PASSES = {"epochs": 2, "minibatches": 2}
SMALL: dict[str, dict[str, Any]] = {"ppo": PASSES, "appo": PASSES, "a2c": {}, "impala": {}, "laser": {}}
# Settings that add state of their own, or another way through the update.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in SMALL},
    "ppo steered": ("ppo", {"adaptive_kl": 1e-9, "value_clip": 0.2}),
    "truly ppo": ("ppo", {"rollback": {}}),
    "appo vtrace": ("appo", {"vtrace": True}),
    "impala summed": ("impala", {"sum_over_batch": True, "reward_clip": "soft_asymmetric"}),
    "a2c curious": ("a2c", {"curiosity": {"hidden": 16}}),
    "ppo curious": ("ppo", {"curiosity": {"hidden": 16}, "reward_clip": "abs_one"}),
    "laser curious": ("laser", {"curiosity": {"hidden": 16}}),
}


def build(variant: str, kind: str = "mlp", **algorithm: Any) -> tuple[Policy, Algorithm]:
    network, spec = KINDS[kind]
    name, special = VARIANTS[variant]
    options = {**SMALL[name], **special, **algorithm}
    policy = algorithm_class(name).make_actor(options, network, spec, 0)
    assert isinstance(policy, Policy)
    return policy, algorithm_class(name)(options, OptimizerConfig(), policy, 0)


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("masked", [False, True])
def test_every_kind_of_network_and_space_learns(name: str, kind: str, masked: bool, record: Record) -> None:
    policy, algorithm = build(name, kind)
    arrays = record(policy, KINDS[kind][1])
    if masked:
        arrays["valid"] = np.random.default_rng(0).random(arrays["reward"].shape) > 0.3
    before = {key: x.clone() for key, x in policy.named_parameters()}
    metrics = algorithm.learn(to_batch(arrays, CPU), 0.0)
    assert all(np.isfinite(value) for value in metrics.values())
    unchanged = [key for key, x in policy.named_parameters() if torch.equal(x, before[key])]
    assert unchanged == []


def through_json(state: Any) -> Any:
    """Sends a state through what a checkpoint allows: tensors aside, only what JSON holds."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: through_json(value) for key, value in state.items()}
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("kind", ["normalized", "lstm"])
def test_a_resumed_learner_computes_the_same_updates_bit_for_bit(name: str, kind: str, record: Record) -> None:
    policy, algorithm = build(name, kind)
    batches = [record(policy, KINDS[kind][1], seed=seed) for seed in range(4)]
    for arrays in batches[:2]:
        algorithm.learn(to_batch(arrays, CPU), 0.1)
    saved, weights = through_json(algorithm.state_dict()), {k: x.clone() for k, x in policy.state_dict().items()}
    other, resumed = build(name, kind)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    for arrays in batches[2:]:
        assert algorithm.learn(to_batch(arrays, CPU), 0.2) == resumed.learn(to_batch(arrays, CPU), 0.2)
        np.testing.assert_array_equal(pack_weights(policy), pack_weights(other))


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("array", ["reward", "observation.obs"])
def test_an_update_that_is_not_finite_changes_nothing(name: str, array: str, record: Record) -> None:
    policy, algorithm = build(name, "normalized")
    good = record(policy, KINDS["normalized"][1])
    algorithm.learn(to_batch(good, CPU), 0.0)
    weights, state = pack_weights(policy), algorithm.state_dict()
    bad = {key: x.copy() for key, x in good.items()}
    bad[array][2, 1] = np.nan
    with pytest.raises(NonFiniteUpdate):
        algorithm.learn(to_batch(bad, CPU), 0.0)
    np.testing.assert_array_equal(pack_weights(policy), weights)
    torch.testing.assert_close(algorithm.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_batch_is_trained_under_the_statistics_it_was_acted_with(name: str, record: Record) -> None:
    policy, algorithm = build(name, "normalized")
    normalizer = policy.inputs.normalizer
    assert normalizer is not None
    arrays = record(policy, KINDS["normalized"][1])
    seen: list[float] = []
    normalizer.register_forward_hook(lambda module, *_: seen.append(module.moments.count.item()))
    algorithm.learn(to_batch(arrays, CPU), 0.0)
    assert set(seen) == {0.0}
    assert normalizer.moments.count.item() == 32


@pytest.mark.parametrize("name", [*sorted(SMALL), "a2c curious"])
def test_a_step_that_was_none_is_in_no_statistics_of_observations(name: str, record: Record) -> None:
    of_icm = {"curiosity": {"hidden": 16, "network": {"normalize_observations": True}}}
    policy, algorithm = build(name, "normalized", **(of_icm if "curious" in name else {}))
    arrays = record(policy, KINDS["normalized"][1])
    # An agent of several that died before the others: until they end, its last observation is repeated.
    arrays["valid"] = np.ones(arrays["reward"].shape, bool)
    arrays["valid"][3:, 1] = False
    arrays["observation.obs"][3:, 1] = 7.0
    algorithm.learn(to_batch(arrays, CPU), 0.0)
    seen = torch.from_numpy(arrays["observation.obs"][:-1][arrays["valid"]]).double()
    of_curiosity = algorithm.state_dict().get("curiosity", {}).get("inputs")
    for state in (policy.inputs.state_dict(), *([of_curiosity] if of_curiosity else [])):
        assert state["normalizer.moments.count"].item() == len(seen) == 27
        torch.testing.assert_close(state["normalizer.moments.mean"], seen.mean(0))


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("kind", ["mlp", "normalized", "lstm"])
def test_a_batch_without_a_step_trains_no_policy(name: str, kind: str, record: Record) -> None:
    policy, algorithm = build(name, kind)
    arrays = record(policy, KINDS[kind][1])
    arrays["valid"] = np.zeros(arrays["reward"].shape, bool)
    before = pack_weights(policy)
    metrics = algorithm.learn(to_batch(arrays, CPU), 0.0)
    assert all(np.isfinite(value) for value in metrics.values())
    assert (metrics["policy_loss"], metrics["value_loss"], metrics["grad_norm"]) == (0.0, 0.0, 0.0)
    np.testing.assert_array_equal(pack_weights(policy), before)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_bad_setting_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.discont.*did you mean discount\?"):
        build(name, discont=0.9)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("appo", "rho"),
        ("appo", "c"),
        ("impala", "rho"),
        ("impala", "c"),
        ("impala", "pg_rho"),
        ("laser", "c"),
        ("laser", "pg_rho"),
    ],
)
def test_where_vtrace_is_off_its_thresholds_are_refused(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm\.{key}=0\.5 does nothing with algorithm\.vtrace=false .set alg"):
        build(name, vtrace=False, **{key: 0.5})
    build(name, vtrace=True, **{key: 0.5})
    build(name, vtrace=False)


def test_the_trust_region_has_a_threshold_without_vtrace_too() -> None:
    build("laser", vtrace=False, rho=0.5)
    with pytest.raises(ConfigError, match=r"algorithm\.rho=0\.5 does nothing"):
        build("laser", vtrace=False, rho=0.5, trust_region=None)


def test_a_linear_schedule_falls_to_zero() -> None:
    assert scheduled(2.0, "linear", 0.25) == 1.5
    assert scheduled(2.0, "linear", 1.5) == 0.0
    assert scheduled(2.0, "constant", 0.25) == 2.0


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_the_flat_optimiser_agrees_with_torchs_own(name: str) -> None:
    torch.manual_seed(0)
    observation = {"obs": torch.randn(16, 4)}
    policy, reference = (build_policy({}, KINDS["mlp"][1], 0) for _ in range(2))
    config = OptimizerConfig.model_validate({"name": name, "lr": 1e-2, "max_grad_norm": 0.1})
    flat = FlatOptimizer(config, policy)
    parameters = list(reference.parameters())
    if name == "adam":
        theirs: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=1e-2, eps=config.eps)
    else:
        theirs = torch.optim.RMSprop(parameters, lr=1e-2, eps=config.eps, alpha=config.alpha)

    def loss(of: Policy) -> torch.Tensor:
        distribution, value = of.evaluate(observation)
        return distribution.entropy().mean() + (value - 1.0).square().mean()

    for _ in range(5):
        norm = flat.step(loss(policy), 1e-2)
        theirs.zero_grad()
        loss(reference).backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(parameters, 0.1))
        theirs.step()
    for mine, other in zip(policy.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_unset_optimiser_settings_take_the_algorithms_defaults() -> None:
    defaults = OptimizerConfig(name="rmsprop", lr=7e-4)
    merged = OptimizerConfig(lr=1e-3).over(defaults)
    assert (merged.name, merged.lr) == ("rmsprop", 1e-3)


def test_an_epsilon_goes_with_its_optimiser() -> None:
    defaults = OptimizerConfig(name="rmsprop", eps=0.01)
    assert OptimizerConfig(lr=1e-3).over(defaults).eps == 0.01
    assert OptimizerConfig(name="rmsprop").over(defaults).eps == 0.01
    assert OptimizerConfig(name="adam").over(defaults).eps == 1e-5
    assert OptimizerConfig(name="adam", eps=1e-3).over(defaults).eps == 1e-3
