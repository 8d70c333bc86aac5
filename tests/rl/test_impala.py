"""IMPALA and LASER: what their losses are, and what the trust region leaves out of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rl.kinds import BOX, DISCRETE, VECTOR

from common.rl.actor import pack_weights
from common.rl.algorithms.base import OptimizerConfig
from common.rl.algorithms.impala import IMPALA, LASER
from common.rl.batch import Batch, to_batch
from common.rl.ops.trust_region import implied_kl
from common.rl.ops.vtrace import Thresholds, vtrace
from common.rl.policy import Outputs, Policy
from common.types import ActionSpec, Arrays, EnvSpec

CPU = torch.device("cpu")
Record = Callable[..., Arrays]
Learner = IMPALA | LASER


def make(kind: type[Learner], spec: EnvSpec, network: dict[str, Any] | None = None, **algorithm: Any) -> Any:
    policy = kind.make_actor(algorithm, network or {}, spec, 0)
    return policy, kind(algorithm, OptimizerConfig(lr=1e-2), policy, 0)


@pytest.fixture
def arrays(cartpole: EnvSpec, record: Record) -> Arrays:
    return record(LASER.make_actor({}, {}, cartpole, 0), cartpole, 12, 6)


def off_policy(arrays: Arrays) -> Arrays:
    """The same unroll as if another policy had acted: certain of action 0 in every other column."""
    changed = {name: x.copy() for name, x in arrays.items()}
    changed["extras.parameters"][:, ::2] = np.log([0.99, 0.01])
    chosen = np.take_along_axis(changed["extras.parameters"], changed["action"][..., None], -1)[..., 0]
    changed["extras.log_prob"] = chosen.astype(np.float32)
    return changed


def seen(policy: Policy, batch: Batch) -> tuple[Outputs, torch.Tensor, torch.Tensor]:
    """What the policy makes of a batch, and V before each row and after each step."""
    outputs = policy.unroll(batch)
    value = outputs.values.detach()
    final = policy.values_of_final(outputs, batch)
    after = value[1:].clone()
    assert batch.final_index is not None
    assert final is not None
    after.view(-1)[batch.final_index] = final.detach()
    return outputs, value, after


def of(policy: Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of one batch by IMPALA's definition, written out; entropy left out."""
    outputs, value, after = seen(policy, batch)
    log_prob = outputs.distribution.log_prob(batch.action)
    step = (batch.reward, value[:-1], after, batch.terminated, batch.truncated, batch.valid)
    traced = vtrace((log_prob - batch.extras["log_prob"]).detach(), *step, 0.9, 1.0, Thresholds())
    policy_loss = -(log_prob * traced.advantage).sum(0).mean()
    value_loss = 0.5 * (traced.target - outputs.values[:-1]).square().sum(0).mean()
    return policy_loss, value_loss


def test_losses_are_summed_over_time_and_averaged_over_columns(arrays: Arrays, cartpole: EnvSpec) -> None:
    policy, impala = make(IMPALA, cartpole, discount=0.9)
    batch = to_batch(off_policy(arrays), CPU)
    expected = [x.item() for x in of(policy, batch)]
    metrics = impala.learn(batch, 0.0)
    assert [metrics["policy_loss"], metrics["value_loss"]] == pytest.approx(expected, rel=1e-5)
    _, summed = make(IMPALA, cartpole, discount=0.9, sum_over_batch=True)
    metrics = summed.learn(batch, 0.0)
    assert [metrics["policy_loss"], metrics["value_loss"]] == pytest.approx([6 * x for x in expected], rel=1e-5)


def test_rewards_are_clipped_before_anything_is_learned_from_them(arrays: Arrays, cartpole: EnvSpec) -> None:
    _, clipped = make(IMPALA, cartpole, reward_clip="abs_one", reward_scale=100.0)
    _, plain = make(IMPALA, cartpole)
    expected = plain.learn(to_batch({**arrays, "reward": np.sign(arrays["reward"])}, CPU), 0.0)
    assert clipped.learn(to_batch({**arrays, "reward": np.sign(arrays["reward"]) * 7.0}, CPU), 0.0) == expected


def test_the_share_of_clipped_ratios_is_of_those_above_rho(arrays: Arrays, cartpole: EnvSpec) -> None:
    batch = to_batch(off_policy(arrays), CPU)
    for rho in (0.7, 2.0):
        policy, impala = make(IMPALA, cartpole, rho=rho)
        log_prob = policy.unroll(batch).distribution.log_prob(batch.action)
        share = ((log_prob - batch.extras["log_prob"]).exp() > rho).float().mean().item()
        assert 0.0 < share < 1.0
        assert impala.learn(batch, 0.0)["clipped"] == pytest.approx(share)


def of_a3c(policy: Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of one batch without V-trace: returns to the end of the episode or unroll, as if π had acted."""
    outputs, value, after = seen(policy, batch)
    returns = torch.zeros_like(batch.reward)
    following = after[-1]
    for t in reversed(range(len(batch.reward))):
        following = torch.where(batch.truncated[t], after[t], following)
        following = batch.reward[t] + 0.9 * following * ~batch.terminated[t]
        returns[t] = following
    policy_loss = -(outputs.distribution.log_prob(batch.action) * (returns - value[:-1])).sum(0).mean()
    return policy_loss, 0.5 * (returns - outputs.values[:-1]).square().sum(0).mean()


def test_without_vtrace_the_losses_are_those_of_uncorrected_returns(arrays: Arrays, cartpole: EnvSpec) -> None:
    policy, impala = make(IMPALA, cartpole, discount=0.9, vtrace=False)
    batch = to_batch(off_policy(arrays), CPU)
    expected = [x.item() for x in of_a3c(policy, batch)]
    assert expected != pytest.approx([x.item() for x in of(policy, batch)], rel=0.1)
    metrics = impala.learn(batch, 0.0)
    assert [metrics["policy_loss"], metrics["value_loss"]] == pytest.approx(expected, rel=1e-5)
    assert metrics["kl"] != 0.0


@pytest.mark.parametrize("kind", [IMPALA, LASER])
@pytest.mark.parametrize("network", [{}, {"lstm": 8, "popart": True}])
def test_on_the_policys_own_steps_vtrace_changes_no_bit(
    kind: type[Learner], network: dict[str, Any], cartpole: EnvSpec, record: Record
) -> None:
    actor, corrected = make(kind, cartpole, network)
    other, plain = make(kind, cartpole, network, vtrace=False)
    for seed in range(3):
        arrays = record(actor, cartpole, 8, 4, seed)
        # What the learner itself says of the actions: the actor's pass may differ in the last bit.
        outputs = actor.unroll(to_batch(arrays, CPU))
        arrays["extras.log_prob"] = outputs.distribution.log_prob(torch.from_numpy(arrays["action"])).detach().numpy()
        metrics = corrected.learn(to_batch(arrays, CPU), 0.0)
        assert plain.learn(to_batch(arrays, CPU), 0.0) == metrics
        assert metrics["kl"] == 0.0
        np.testing.assert_array_equal(pack_weights(actor), pack_weights(other))


@pytest.mark.parametrize(
    ("network", "action"),
    [
        ({}, DISCRETE),
        ({"lstm": 8, "popart": True, "last_action": True, "last_reward": True}, DISCRETE),
        ({}, BOX),
        ({"distribution": "tanh_normal", "sigma": "state", "gru": 8, "last_action": True}, BOX),
        ({"distribution": "beta", "popart": True}, BOX),
    ],
    ids=["discrete", "discrete lstm", "normal", "tanh gru", "beta"],
)
@pytest.mark.parametrize("bound", [None, 1e30])
@pytest.mark.parametrize("masked", [False, True])
def test_laser_without_a_bound_or_replay_is_impala_bit_for_bit(
    network: dict[str, Any], action: ActionSpec, bound: float | None, masked: bool, record: Record
) -> None:
    spec = EnvSpec("a", (VECTOR,), action)
    actor, laser = make(LASER, spec, network, trust_region=bound)
    other, impala = make(IMPALA, spec, network)
    for seed in range(4):
        arrays = record(actor, spec, 8, 4, seed)
        if masked:
            arrays["valid"] = np.random.default_rng(seed).random(arrays["reward"].shape) > 0.2
        laser.learn(to_batch({**arrays, "online": np.ones(4, bool)}, CPU), 0.0)
        impala.learn(to_batch(arrays, CPU), 0.0)
        np.testing.assert_array_equal(pack_weights(actor), pack_weights(other))


def test_what_lies_beyond_the_bound_is_in_no_loss_until_its_episode_ends(arrays: Arrays, cartpole: EnvSpec) -> None:
    for name in ("terminated", "truncated"):
        arrays[name][:] = False
    arrays["terminated"][7] = True
    arrays["extras.parameters"][4, 2] = np.log([0.999, 0.001])
    inside = {name: x.copy() for name, x in arrays.items()}
    inside["reward"][4:8, 2] = 1e3
    inside["action"][4:8, 2] = 1 - inside["action"][4:8, 2]
    policy, laser = make(LASER, cartpole, trust_region=0.1, entropy=0.0)
    other, same = make(LASER, cartpole, trust_region=0.1, entropy=0.0)
    metrics = laser.learn(to_batch(arrays, CPU), 0.0)
    same.learn(to_batch(inside, CPU), 0.0)
    assert metrics["trusted"] == pytest.approx(1.0 - 4 / 72)
    np.testing.assert_array_equal(pack_weights(policy), pack_weights(other))
    inside["reward"][8, 2] = 1e3
    _, after = make(LASER, cartpole, trust_region=0.1, entropy=0.0)
    assert after.learn(to_batch(inside, CPU), 0.0)["value_loss"] > 1e4


def test_popart_follows_the_targets_of_trusted_steps_alone(arrays: Arrays, cartpole: EnvSpec) -> None:
    for name in ("terminated", "truncated"):
        arrays[name][:] = False
    arrays["extras.parameters"][4, 2] = np.log([0.999, 0.001])
    # With nothing to come and ratios of 1 a trusted step's target is its reward; that of a cut one is V, about 0.
    arrays["reward"][:] = 100.0
    policy, laser = make(LASER, cartpole, {"popart": True}, trust_region=0.1, discount=0.0)
    assert laser.learn(to_batch(arrays, CPU), 0.0)["trusted"] == pytest.approx(1.0 - 8 / 72)
    # The first update counts whole.
    assert policy.popart.mean.item() == pytest.approx(100.0, rel=1e-5)


def test_the_trust_region_is_measured_with_the_ratios_cut_at_rho(arrays: Arrays, cartpole: EnvSpec) -> None:
    policy, laser = make(LASER, cartpole, rho=2.0)
    batch = to_batch(off_policy(arrays), CPU)
    distribution, behaviour = policy.unroll(batch).distribution, policy.behaviour(batch.extras)
    expected, other = (implied_kl(distribution, behaviour, rho, 1).mean().item() for rho in (2.0, 1.0))
    assert expected < 0.8 * other
    assert laser.learn(batch, 0.0)["implied_kl"] == pytest.approx(expected, rel=1e-5)


def test_the_entropy_is_that_of_online_columns(arrays: Arrays, cartpole: EnvSpec) -> None:
    online = np.array([True, False, True, True, False, True])
    weights = []
    for flag in (online, np.ones(6, bool)):
        policy, laser = make(LASER, cartpole, entropy=10.0, value_weight=0.0, trust_region=None)
        batch = {**off_policy(arrays), "reward": np.zeros((12, 6), np.float32)}
        laser.learn(to_batch({**batch, "online": flag}, CPU), 0.0)
        weights.append(pack_weights(policy))
    assert (weights[0] != weights[1]).any()
    policy, laser = make(LASER, cartpole, trust_region=None)
    with torch.no_grad():
        policy.pi.weight.mul_(100.0)
    mixed = to_batch({**arrays, "online": online}, CPU)
    entropy = policy.unroll(mixed).distribution.entropy()[:, torch.from_numpy(online)].mean().item()
    assert laser.learn(mixed, 0.0)["entropy"] == pytest.approx(entropy, rel=1e-5)


def test_only_online_columns_join_the_statistics_of_observations(arrays: Arrays, cartpole: EnvSpec) -> None:
    online = np.array([True, False, True, True, False, True])
    policy, laser = make(LASER, cartpole, network={"normalize_observations": True})
    laser.learn(to_batch({**off_policy(arrays), "online": online}, CPU), 0.0)
    seen = arrays["observation.obs"][:-1, online]
    moments = policy.inputs.normalizer.moments
    assert moments.count.item() == pytest.approx(12 * 4)
    np.testing.assert_allclose(moments.mean, seen.reshape(-1, 4).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", [{}, {"popart": True}])
def test_a_batch_of_which_nothing_may_be_learned_changes_nothing(
    network: dict[str, Any], arrays: Arrays, cartpole: EnvSpec
) -> None:
    arrays["extras.parameters"][:] = np.log([0.999, 0.001])
    policy, laser = make(LASER, cartpole, network, trust_region=0.01)
    before = pack_weights(policy)
    metrics = laser.learn(to_batch({**arrays, "online": np.zeros(6, bool)}, CPU), 0.0)
    assert (metrics["trusted"], metrics["policy_loss"], metrics["value_loss"]) == (0.0, 0.0, 0.0)
    np.testing.assert_array_equal(pack_weights(policy), before)
