"""One update of each actor-critic, at settings none of which is a default, against its loss written out.

The loops are in float64 and know nothing of `common.rl.ops`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.rl.algorithms.base import OptimizerConfig
from common.rl.batch import Batch, to_batch
from common.rl.policy import Policy
from common.rl.registry import algorithm_class
from common.types import Arrays, EnvSpec

CPU = torch.device("cpu")
Record = Callable[..., Arrays]
Array = NDArray[Any]
# An epsilon that drowns the root makes RMSProp plain descent at rate 1: the weights move by the gradient itself.
DESCENT = OptimizerConfig(name="rmsprop", lr=1e6, eps=1e6, max_grad_norm=1e9)
SETTINGS: dict[str, Any] = {"discount": 0.8, "lam": 0.6, "value_weight": 0.3, "entropy": 0.4, "reward_scale": 1.5}
SURROGATE: dict[str, Any] = {**SETTINGS, "clip": 0.15, "epochs": 1, "minibatches": 1}
RATIOS: dict[str, Any] = {"vtrace": True, "rho": 1.7, "c": 0.6}
ASYNC: dict[str, Any] = {**SURROGATE, **RATIOS}
IMPALA: dict[str, Any] = {**SETTINGS, **RATIOS, "pg_rho": 1.2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a2c": ("a2c", SETTINGS),
    "a2c normalised": ("a2c", {**SETTINGS, "normalize_advantages": True}),
    "a2c abs_one": ("a2c", {**SETTINGS, "reward_clip": "abs_one"}),
    "a2c soft_asymmetric": ("a2c", {**SETTINGS, "reward_clip": "soft_asymmetric"}),
    "ppo": ("ppo", {**SURROGATE, "normalize_advantages": False}),
    "ppo normalised": ("ppo", {**SURROGATE, "normalize_advantages": True}),
    "ppo abs_one": ("ppo", {**SURROGATE, "normalize_advantages": False, "reward_clip": "abs_one"}),
    "ppo soft_asymmetric": ("ppo", {**SURROGATE, "normalize_advantages": False, "reward_clip": "soft_asymmetric"}),
    "ppo rollback": ("ppo", {**SURROGATE, "normalize_advantages": False, "rollback": {"radius": 0.02, "slope": 3.0}}),
    "appo": ("appo", {**ASYNC, "normalize_advantages": False}),
    "appo normalised": ("appo", {**ASYNC, "normalize_advantages": True}),
    "appo abs_one": ("appo", {**ASYNC, "normalize_advantages": False, "reward_clip": "abs_one"}),
    "appo soft_asymmetric": ("appo", {**ASYNC, "normalize_advantages": False, "reward_clip": "soft_asymmetric"}),
    "impala": ("impala", IMPALA),
    "impala abs_one": ("impala", {**IMPALA, "reward_clip": "abs_one"}),
    "impala soft_asymmetric": ("impala", {**IMPALA, "reward_clip": "soft_asymmetric"}),
}


@dataclass(frozen=True)
class Sight:
    """What a policy makes of a batch, [T, B] each: with a gradient but for `before` and `after`."""

    log_prob: Tensor
    every: Tensor  # log π of each action, [T, B, 2]
    entropy: Tensor
    value: Tensor
    before: Array
    after: Array


def sight(policy: Policy, batch: Batch) -> Sight:
    outputs = policy.unroll(batch)
    values = outputs.values.detach().double().numpy()
    after = values[1:].copy()
    final = policy.values_of_final(outputs, batch)
    assert final is not None
    assert batch.final_index is not None
    after.reshape(-1)[batch.final_index.numpy()] = final.detach().numpy()
    log_prob = outputs.distribution.log_prob(batch.action)
    every = torch.stack([outputs.distribution.log_prob(torch.full_like(batch.action, a)) for a in (0, 1)], -1)
    return Sight(log_prob, every, outputs.distribution.entropy(), outputs.values[:-1], values[:-1], after)


def cut(reward: float, clip: str) -> float:
    if clip == "abs_one":
        return min(max(reward, -1.0), 1.0)
    if clip == "soft_asymmetric":
        return 5.0 * math.tanh(reward) if reward > 0.0 else 0.3 * math.tanh(reward)
    return reward


def traced(of: Sight, ratio: Array, arrays: Arrays, settings: dict[str, Any]) -> tuple[Array, Array]:
    """Gives V-trace's targets, and r + g·vs' - V: Espeholt et al. 2018's remark 1, one step at a time."""
    g, lam, rho, c = settings["discount"], settings["lam"], settings.get("rho", 1.0), settings.get("c", 1.0)
    steps, columns = ratio.shape
    target, ahead = of.before.copy(), np.zeros_like(of.before)
    term, trunc, valid = arrays["terminated"], arrays["truncated"], arrays["valid"]
    for t, b in ((t, b) for b in range(columns) for t in reversed(range(steps)) if valid[t, b]):
        goes_on = t + 1 < steps and valid[t + 1, b] and not (term[t, b] or trunc[t, b])
        v, after, weight = of.before[t, b], 0.0 if term[t, b] else of.after[t, b], ratio[t, b]
        r = cut(settings["reward_scale"] * float(arrays["reward"][t, b]), settings.get("reward_clip", "none"))
        trace = g * lam * min(c, weight) * (target[t + 1, b] - after) if goes_on else 0.0
        target[t, b] = v + min(rho, weight) * (r + g * after - v) + trace
        ahead[t, b] = r + g * (target[t + 1, b] if goes_on else after) - v
    return target, ahead


def mean(x: Tensor, valid: Array) -> Tensor:
    return x[torch.from_numpy(valid)].mean()


def standardised(x: Array, valid: Array) -> Array:
    counted: Array = x[valid]
    return np.asarray((x - counted.mean()) / counted.std())


def loss(name: str, of: Sight, arrays: Arrays, settings: dict[str, Any], std: float) -> Tensor:
    """The loss of one update, of values learned in units of `std`."""
    valid, log_ratio = arrays["valid"], of.log_prob - torch.from_numpy(arrays["extras.log_prob"])
    ratio = log_ratio.detach().double().exp().numpy()
    target, ahead = traced(of, ratio if settings.get("vtrace") else np.ones_like(ratio), arrays, settings)
    advantage = (ahead if settings.get("vtrace") else target - of.before) / std
    if settings.get("normalize_advantages"):
        advantage = standardised(advantage, valid)
    weight, error = torch.from_numpy(advantage), ((of.value - torch.from_numpy(target)) / std).square()
    if name == "impala":
        weight = weight * torch.from_numpy(ratio).clamp(max=settings["pg_rho"])
        each: Tensor = -of.log_prob * weight + settings["value_weight"] * 0.5 * error - settings["entropy"] * of.entropy
        columns: int = valid.shape[1]
        return each[torch.from_numpy(valid)].sum() / columns
    if name == "a2c":
        gain = of.log_prob * weight
    elif chosen := settings.get("rollback"):
        mu = torch.from_numpy(arrays["extras.parameters"]).log_softmax(-1)
        kl = (mu.exp() * (mu - of.every)).sum(-1)
        gain = log_ratio.exp() * weight
        outside = (kl >= chosen["radius"]) & (gain > weight)
        gain = gain - torch.where(outside, chosen["slope"] * (kl - chosen["radius"]), 0)
    else:
        high = 1.0 + settings["clip"]
        low = 1.0 - settings["clip"] if name == "ppo" else 1.0 / high
        gain = torch.minimum(log_ratio.exp() * weight, log_ratio.exp().clamp(low, high) * weight)
    return mean(-gain + settings["value_weight"] * error - settings["entropy"] * of.entropy, valid)


def policy_of(name: str, settings: dict[str, Any], spec: EnvSpec, seed: int, popart: bool = False) -> Policy:
    """A policy that is far from uniform: at its first weights the entropy has next to no gradient."""
    policy = algorithm_class(name).make_actor(settings, {"popart": popart}, spec, seed)
    assert isinstance(policy, Policy)
    with torch.no_grad():
        policy.pi.weight.mul_(100.0)
    return policy


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("popart", [False, True])
def test_an_update_descends_the_loss_written_out(
    case: str, masked: bool, popart: bool, cartpole: EnvSpec, record: Record
) -> None:
    name, settings = CASES[case]
    # Another policy acted: ratios lie on both sides of every bound.
    arrays = record(policy_of(name, settings, cartpole, 1), cartpole, 12, 6)
    arrays["valid"] = np.random.default_rng(1).random((12, 6)) > (0.2 if masked else -1.0)
    policy = policy_of(name, settings, cartpole, 0, popart)
    # These have a mean of 2 and a standard deviation of 3.
    policy.fold_targets(torch.tensor([[-1.0, 5.0]]), None)
    batch = to_batch(arrays, CPU)
    of_update = loss(name, sight(policy, batch), arrays, settings, 3.0 if popart else 1.0)
    gradients = torch.autograd.grad(of_update, list(policy.parameters()))
    learner = algorithm_class(name)(settings, DESCENT, policy, 0)
    before = {part: x.detach().clone() for part, x in policy.named_parameters()}
    metrics = learner.learn(batch, 0.0)
    assert metrics["grad_norm"] == pytest.approx(torch.cat([x.flatten() for x in gradients]).norm().item(), rel=1e-4)
    for (part, after), gradient in zip(policy.named_parameters(), gradients, strict=True):
        # PopArt fits the value head to new statistics after the step: of its gradient the norm alone is left to see.
        if not (popart and part.startswith("v.")):
            torch.testing.assert_close(before[part] - after, gradient, rtol=1e-3, atol=2e-6)
