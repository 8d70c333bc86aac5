import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rl.kinds import BOX, CHOICES, DISCRETE, KINDS, MASK, MIXED, PIXELS, SWITCHES, VECTOR
from torch import nn

from common.errors import ConfigError
from common.rl.actor import Acted, Seen, pack_weights, unpack_weights, weights_layout
from common.rl.batch import Batch, to_batch
from common.rl.distributions import Categorical
from common.rl.encoders import MLP
from common.rl.policy import Policy, build_policy
from common.rl.processor import has_bf16
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec

CPU = torch.device("cpu")
Record = Callable[..., Arrays]
kinds = pytest.mark.parametrize("kind", sorted(KINDS))


def built(kind: str, seed: int = 0, parameters: bool = False, values: bool = False) -> Policy:
    network, env = KINDS[kind]
    return build_policy(network, env, seed, parameters, values)


def recorded(policy: Policy, record: Record, steps: int = 12, columns: int = 5) -> Batch:
    return to_batch(record(policy, policy.env, steps, columns), CPU)


def seen(policy: Policy, observation: dict[str, torch.Tensor], u: torch.Tensor) -> Seen:
    n = u.shape[0]
    state = {s.name: torch.from_numpy(np.zeros((n, *s.shape), s.dtype)) for s in policy.spec.state}
    return Seen(observation, torch.zeros(n, dtype=torch.bool), torch.zeros(n), state, u, torch.arange(n))


def acted(policy: Policy, observation: dict[str, torch.Tensor], u: torch.Tensor, greedy: bool = False) -> Acted:
    return policy.act(seen(policy, observation, u), greedy)


@kinds
def test_the_learner_sees_the_log_probabilities_of_the_behaviour(kind: str, record: Record) -> None:
    policy = built(kind)
    batch = recorded(policy, record)
    policy.fold(batch)
    batch = recorded(policy, record)
    outputs = policy.unroll(batch)
    torch.testing.assert_close(
        outputs.distribution.log_prob(batch.action), batch.extras["log_prob"], atol=2e-6, rtol=1e-6
    )
    assert outputs.values.shape == (13, 5)
    assert outputs.distribution.entropy().isfinite().all()


@kinds
def test_the_behaviours_distribution_comes_back_from_its_parameters(kind: str, record: Record) -> None:
    policy = built(kind, parameters=True)
    batch = recorded(policy, record)
    behaviour = policy.behaviour(batch.extras)
    torch.testing.assert_close(behaviour.log_prob(batch.action), batch.extras["log_prob"], atol=2e-6, rtol=1e-6)
    kl = behaviour.kl(policy.unroll(batch).distribution)
    torch.testing.assert_close(kl, torch.zeros(12, 5), atol=2e-6, rtol=0)


@kinds
def test_columns_are_worth_the_same_alone(kind: str, record: Record) -> None:
    policy = built(kind)
    batch = recorded(policy, record)
    index = torch.tensor([3, 0])
    part, whole = policy.unroll(batch.columns(index)), policy.unroll(batch)
    torch.testing.assert_close(part.values, whole.values[:, index], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "told", "told mixed", "masked", "masked parts", "encoders", "popart"])
def test_shuffled_rows_are_worth_what_they_are_in_their_unroll(kind: str, record: Record) -> None:
    policy = built(kind)
    batch = recorded(policy, record)
    outputs = policy.unroll(batch)
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:20]
    rows = {name: x[:-1].flatten(0, 1)[chosen] for name, x in policy.rows(batch).items()}
    distribution, values = policy.evaluate(rows)
    torch.testing.assert_close(values, outputs.values[:-1].flatten()[chosen])
    action, log_prob = batch.action.flatten(0, 1)[chosen], batch.extras["log_prob"].flatten()[chosen]
    torch.testing.assert_close(distribution.log_prob(action), log_prob, atol=2e-6, rtol=1e-6)


@kinds
def test_packed_weights_make_another_policy_the_same(kind: str, record: Record) -> None:
    trained, other = built(kind), built(kind, seed=1)
    batch = recorded(trained, record, 3, 4)
    trained.fold(batch)
    trained.fold_targets(batch.reward * 5 + 3, None)
    buffer = pack_weights(trained)
    buffer.flags.writeable = False
    assert weights_layout(trained) == weights_layout(other)
    unpack_weights(other, buffer)
    mine, theirs = trained.unroll(batch), other.unroll(batch)
    torch.testing.assert_close(mine.values, theirs.values, rtol=0, atol=0)
    ours = mine.distribution.log_prob(batch.action)
    torch.testing.assert_close(ours, theirs.distribution.log_prob(batch.action), rtol=0, atol=0)


@kinds
def test_the_same_seed_builds_the_same_weights_and_leaves_the_global_generator_alone(kind: str) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    weights = [pack_weights(built(kind, seed)) for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@kinds
def test_actions_have_the_shape_and_dtype_of_their_space(kind: str, record: Record) -> None:
    policy = built(kind)
    action = recorded(policy, record).action
    assert tuple(action.shape[2:]) == policy.action.shape
    assert action.numpy().dtype.str == policy.action.dtype
    narrow = replace(policy.env, action=replace(policy.action, dtype="<f4"))
    assert recorded(build_policy(KINDS[kind][0], narrow, 0), record).action.dtype == torch.float32


def test_the_spec_names_extras_and_recurrent_state() -> None:
    assert built("mlp").spec.state == ()
    assert built("lstm").spec.extras == (ArraySpec("log_prob", "<f4", ()),)
    assert built("lstm").spec.state == (ArraySpec("h", "<f4", (8,)), ArraySpec("c", "<f4", (8,)))
    assert built("gru").spec.state == (ArraySpec("h", "<f4", (8,)),)
    assert [spec.name for spec in built("lstm apart").spec.state] == ["h", "c", "critic_h", "critic_c"]
    assert built("told").spec.state == (ArraySpec("last_action", "<i8", (1, 2)),)
    extras = built("mixed", parameters=True).spec.extras
    assert extras[1] == ArraySpec("parameters", "<f4", (3 + 4 + 2 + 2,))


def test_greedy_acting_takes_the_mode_whatever_the_noise() -> None:
    policy, observation = built("mlp"), {"obs": torch.randn(50, 4)}
    low, high = (acted(policy, observation, torch.full((50, 1), u), greedy=True).action for u in (0.01, 0.99))
    assert torch.equal(low, high)
    assert len(set(low.tolist())) > 1
    assert set(acted(policy, observation, torch.full((50, 1), 0.01)).action.tolist()) == {0}


def test_acting_does_not_run_a_separate_critic() -> None:
    policy = built("mlp")
    policy.critic = None
    assert acted(policy, {"obs": torch.randn(2, 4)}, torch.rand(2, 1)).action.shape == (2,)


def test_a_critic_apart_has_a_core_whose_state_acting_carries(record: Record) -> None:
    policy = built("lstm apart")
    batch = recorded(policy, record, steps=9)
    hidden = policy.unroll(batch).hidden
    state = batch.state
    for t, row in enumerate(hidden[0]):
        told = {"obs": batch.observation["obs"][t]}
        state = policy.act(Seen(told, batch.first[t], torch.zeros(5), state, torch.rand(5, 1), torch.arange(5))).state
        torch.testing.assert_close(state["critic_h"], row)
        assert not torch.equal(state["critic_h"], state["h"])


@kinds
def test_values_alone_are_those_of_an_unroll(kind: str, record: Record) -> None:
    policy = built(kind)
    batch = recorded(policy, record)
    alone, outputs = policy.valued(batch), policy.unroll(batch)
    torch.testing.assert_close(alone.values, outputs.values, rtol=0, atol=0)
    assert (alone.hidden is None) == (outputs.hidden is None)
    for own, whole in zip(alone.hidden or (), outputs.hidden or (), strict=True):
        torch.testing.assert_close(own, whole, rtol=0, atol=0)


def test_actor_and_critic_apart_have_no_weight_in_common(record: Record) -> None:
    policy = built("lstm apart")
    batch = recorded(policy, record)
    outputs = policy.unroll(batch)
    parts = {}
    for name, of in {"pi": outputs.distribution.entropy().sum(), "v": outputs.values.sum()}.items():
        policy.zero_grad()
        of.backward(retain_graph=True)
        parts[name] = {key for key, weight in policy.named_parameters() if weight.grad is not None}
    assert not parts["pi"] & parts["v"]
    assert parts["pi"] | parts["v"] == {key for key, _ in policy.named_parameters()}


@pytest.mark.parametrize("kind", ["lstm", "gru", "told box", "lstm apart", "told gru apart"])
def test_values_of_final_observations_continue_the_state_of_their_column(kind: str, record: Record) -> None:
    policy = built(kind)
    arrays = record(policy, policy.env, 6, 3, seed=2)
    arrays["first"][1:] = False
    # The next row's own observation, seen as a true last one, must be worth what the unroll says.
    rows = [(0, 2), (4, 1)]
    arrays["final_index"] = np.array([t * 3 + b for t, b in rows], np.int32)
    arrays["final.obs"] = np.stack([arrays["observation.obs"][t + 1, b] for t, b in rows])
    batch = to_batch(arrays, CPU)
    outputs = policy.unroll(batch)
    expected = torch.stack([outputs.values[t + 1, b] for t, b in rows])
    torch.testing.assert_close(policy.values_of_final(outputs, batch), expected)
    part = batch.columns(torch.tensor([1, 0]))
    torch.testing.assert_close(policy.values_of_final(policy.unroll(part), part), expected[1:])


@pytest.mark.parametrize("kind", ["mlp", "told", "lstm", "encoders", "nature_cnn"])
def test_any_number_of_final_observations_makes_few_sizes(kind: str, record: Record) -> None:
    policy = built(kind)
    arrays, sizes = record(policy, policy.env, 5, 4), set()
    for module in policy.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | MLP):
            module.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    for k in range(1, 18):
        arrays["final_index"] = np.arange(k, dtype=np.int32)
        rows = {n: x[1:].reshape(20, *x.shape[2:]) for n, x in arrays.items() if n.startswith("observation.")}
        batch = to_batch(arrays | {n.replace("observation", "final"): x[:k] for n, x in rows.items()}, CPU)
        outputs = policy.unroll(batch)
        sizes.clear()
        values = policy.values_of_final(outputs, batch)
        assert values is not None
        assert values.shape == (k,)
        assert sizes <= {1, 2, 4, 8, 16, 32, k if kind == "lstm" else 1}
        unlike = arrays["first"][1:].reshape(20)[:k]
        torch.testing.assert_close(values[~unlike], outputs.values[1:].flatten()[:k][~unlike], atol=1e-6, rtol=1e-5)


def test_a_batch_without_final_observations_has_no_values_of_them(record: Record) -> None:
    policy = built("mlp")
    arrays = record(policy, policy.env, 2, 1)
    batch = to_batch({**arrays, "final_index": np.zeros(0, np.int32)}, CPU)
    assert policy.values_of_final(policy.unroll(batch), batch) is None


def test_normal_actions_are_not_clipped_and_bounded_ones_keep_within() -> None:
    u = torch.linspace(0.001, 0.999, 400).reshape(200, 2)
    observation = {"obs": torch.randn(200, 4)}
    wide = acted(built("normal"), observation, u).action
    assert wide[:, 0].abs().max() > 2.0
    for kind in ("tanh", "tanh state", "beta"):
        policy = built(kind)
        u = torch.rand(200, policy.noise_size, generator=torch.Generator().manual_seed(0)).clamp(1e-6)
        action = acted(policy, observation, u).action
        assert (action >= torch.tensor([-1.0, -2.0])).all()
        assert (action <= torch.tensor([1.0, 4.0])).all()
        assert action[:, 1].max() > 2.5
        assert action[:, 1].min() < -0.5


def test_what_a_mask_forbids_is_never_chosen_and_has_probability_zero() -> None:
    policy = built("masked")
    with torch.no_grad():
        policy.pi.bias.copy_(torch.tensor([0.0, 9.0, 8.0]))
    mask = torch.tensor([[True, False, False], [True, False, True], [False, True, True], [False, False, False]])
    observation = {"obs": torch.zeros(4, 4), "mask": mask}
    for u in (2.0**-24, 0.5, 1.0 - 2.0**-24):
        action = acted(policy, observation, torch.full((4, 1), u)).action
        assert mask[:3].gather(1, action[:3, None]).all()
    distribution, _ = policy.evaluate(observation)
    assert isinstance(distribution, Categorical)
    assert distribution.log_probs.exp()[:3][~mask[:3]].tolist() == [0.0] * 4
    assert distribution.log_probs.exp()[3].tolist() == pytest.approx([1 / 3] * 3)
    other, _ = policy.evaluate({**observation, "mask": torch.ones(4, 3, dtype=torch.bool)})
    assert isinstance(other, Categorical)
    for value in (distribution.entropy(), distribution.kl(distribution), distribution.kl(other)):
        assert value.isfinite().all()
        assert (value >= -1e-6).all()
    (gradient,) = torch.autograd.grad(distribution.entropy().sum(), policy.pi.bias)
    assert gradient.isfinite().all()


def test_a_mask_is_no_input_of_the_network() -> None:
    policy = built("masked")
    assert policy.inputs.width == 4


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"action_mask": "mas"}, ("network.action_mask='mas'", "is no observation", "obs")),
        ({"action_mask": "obs"}, ("network.action_mask='obs'", "shape (4,)", "3 choices")),
        ({"encoders": {"obz": {}}}, ("network.encoders.obz", "did you mean obs?")),
    ],
)
def test_a_setting_that_the_environment_refuses_is_named(network: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_policy(network, EnvSpec("a", (VECTOR, MASK), DISCRETE), 0)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("action", "network", "text"),
    [
        (DISCRETE, {"distribution": "beta"}, "distribution='beta' says nothing to the discrete actions of 'a'"),
        (SWITCHES, {"sigma": "state"}, "sigma='state' says nothing to the multi_binary actions of 'a'"),
        (CHOICES, {"log_std_init": -1.0}, "log_std_init=-1.0 says nothing to the tuple actions of 'a'"),
        (BOX, {"distribution": "beta", "sigma": "free"}, "sigma='free' says nothing to network.distribution='beta'"),
        (MIXED, {"distribution": "beta", "log_std_init": 0.0}, "log_std_init=0.0 says nothing to network.distribution"),
    ],
)
def test_a_key_of_box_actions_that_the_head_does_not_read_is_refused(
    action: ActionSpec, network: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"network.{text}")):
        build_policy(network, EnvSpec("a", (VECTOR,), action), 0)
    build_policy({"sigma": "state", "log_std_init": -1.0}, EnvSpec("a", (VECTOR,), MIXED), 0)


@pytest.mark.parametrize("low", [-np.inf, 1.0, -3.4e38])
def test_bounded_distributions_want_bounds(low: float) -> None:
    # Unbounded, held in place, and wider than float32.
    box = replace(BOX, low=(low, -1.0), high=(1.0 if low > -1e38 else 3.4e38, 4.0))
    with pytest.raises(ConfigError, match=r"network\.distribution='beta' wants finite bounds.*set it to normal"):
        build_policy({"distribution": "beta"}, EnvSpec("a", (VECTOR,), box), 0)


def test_a_bernoulli_mask_keeps_a_switch_off() -> None:
    env = EnvSpec("a", (VECTOR, ArraySpec("mask", "|i1", (2,))), SWITCHES)
    policy = build_policy({"action_mask": "mask"}, env, 0)
    observation = {"obs": torch.zeros(1, 4), "mask": torch.tensor([[1, 0]], dtype=torch.int8)}
    assert acted(policy, observation, torch.full((1, 2), 1e-6)).action.tolist() == [[1, 0]]


def test_popart_leaves_values_as_they_are_and_learns_on_their_scale(record: Record) -> None:
    policy = built("popart")
    batch = recorded(policy, record)
    before = policy.unroll(batch).values
    target = batch.reward * 50.0 + 300.0
    policy.fold_targets(target, None)
    after = policy.unroll(batch).values
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-5)
    scaled = policy.normalized(target)
    assert scaled.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert scaled.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    plain = built("mlp")
    plain.fold_targets(target, None)
    assert plain.normalized(target) is target


def test_only_a_simple_policy_is_plain() -> None:
    plain = [kind for kind in sorted(KINDS) if built(kind).plain]
    assert plain == ["mlp", "normal", "normalized", "popart", "scalar", "shared"]
    assert not built("mlp", parameters=True).plain
    assert not built("mlp", values=True).plain


def test_bfloat16_is_near_and_features_come_out_in_float32(record: Record) -> None:
    env = EnvSpec("a", (PIXELS,), DISCRETE)
    full, low = (build_policy({"name": "nature_cnn", "bf16": on}, env, 0) for on in (False, True))
    batch = recorded(full, record, 3, 4)
    exact, near = full.unroll(batch), low.unroll(batch)
    assert near.values.dtype == torch.float32
    # A processor without the instructions takes float32.
    assert torch.equal(near.values, exact.values) is not has_bf16(torch.device("cpu"))
    torch.testing.assert_close(near.values, exact.values, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("shape", [(4, 36, 36), (36, 36, 4)])
def test_bytes_become_bfloat16_as_if_by_way_of_float32(shape: tuple[int, ...]) -> None:
    env = EnvSpec("a", (ArraySpec("pixels", "|u1", shape),), DISCRETE)
    full, low = (build_policy({"name": "nature_cnn", "bf16": on}, env, 0) for on in (False, True))
    every = torch.arange(2 * 36 * 36 * 4).remainder(256).to(torch.uint8).reshape(2, *shape)
    (exact,), (near,) = full.inputs({"pixels": every}), low.inputs({"pixels": every})
    assert near.dtype == (torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32)
    assert torch.equal(near.bfloat16(), exact.bfloat16())


@pytest.mark.parametrize("shape", [(2, 36, 36), (36, 36, 2)])
def test_the_memory_format_of_images_changes_nothing_but_speed(shape: tuple[int, ...], record: Record) -> None:
    env = EnvSpec("a", (ArraySpec("pixels", "|u1", shape),), DISCRETE)
    last, first = (build_policy({"name": "nature_cnn", "channels_last": on}, env, 0) for on in (True, False))
    batch = recorded(last, record, 3, 4)
    (image,) = last.inputs({name: x.flatten(0, 1) for name, x in batch.observation.items()})
    assert image.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.unroll(batch).values, first.unroll(batch).values, atol=1e-5, rtol=1e-4)
