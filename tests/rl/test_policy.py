from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import ProtocolError
from common.rl.batch import to_batch
from common.rl.policy import build_policy, pack_weights, unpack_weights, weights_layout
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec

CPU = torch.device("cpu")
Record = Callable[..., Arrays]


@pytest.mark.parametrize("network", [{}, {"shared": True}, {"lstm": 8}, {"normalize_observations": True}])
def test_the_learner_sees_the_log_probabilities_of_the_behaviour(
    network: dict[str, object], cartpole: EnvSpec, record: Record
) -> None:
    policy = build_policy(network, cartpole, 0)
    policy.fold({"obs": torch.randn(100, 4) * 3})
    batch = to_batch(record(policy, cartpole, 12, 5), CPU)
    outputs = policy.unroll(batch.observation, batch.first, batch.state)
    torch.testing.assert_close(outputs.distribution.log_prob(batch.action), batch.extras["log_prob"])
    assert outputs.values.shape == (13, 5)


def test_the_spec_names_extras_and_recurrent_state(cartpole: EnvSpec) -> None:
    assert build_policy({}, cartpole, 0).spec.state == ()
    spec = build_policy({"lstm": 8}, cartpole, 0).spec
    assert spec.extras == (ArraySpec("log_prob", "<f4", ()),)
    assert spec.state == (ArraySpec("h", "<f4", (8,)), ArraySpec("c", "<f4", (8,)))


def test_greedy_acting_takes_the_mode_whatever_the_noise(cartpole: EnvSpec) -> None:
    policy = build_policy({}, cartpole, 0)
    observation, first = {"obs": torch.randn(50, 4)}, torch.zeros(50, dtype=torch.bool)
    actions = {u: policy.act(observation, first, {}, torch.full((50, 1), u), greedy=True)[0] for u in (0.01, 0.99)}
    assert torch.equal(actions[0.01], actions[0.99])
    assert actions[0.01].unique().numel() == 2
    sampled = policy.act(observation, first, {}, torch.full((50, 1), 0.01))[0]
    assert sampled.unique().tolist() == [0]


def test_acting_does_not_run_a_separate_critic(cartpole: EnvSpec) -> None:
    policy = build_policy({}, cartpole, 0)
    policy.critic = None
    action, _, _ = policy.act({"obs": torch.randn(2, 4)}, torch.ones(2, dtype=torch.bool), {}, torch.rand(2, 1))
    assert action.shape == (2,)


def test_the_same_seed_builds_the_same_weights_and_leaves_the_global_generator_alone(cartpole: EnvSpec) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    weights = [pack_weights(build_policy({}, cartpole, seed)) for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("network", [{"normalize_observations": True}, {"lstm": 8}])
def test_packed_weights_make_another_policy_the_same(network: dict[str, object], cartpole: EnvSpec) -> None:
    trained, other = build_policy(network, cartpole, 0), build_policy(network, cartpole, 1)
    trained.fold({"obs": torch.randn(100, 4) * 5 + 2})
    buffer = pack_weights(trained)
    assert buffer.dtype == np.uint8
    assert buffer.ndim == 1
    buffer.flags.writeable = False
    unpack_weights(other, buffer)
    assert weights_layout(trained) == weights_layout(other)
    np.testing.assert_array_equal(pack_weights(other), buffer)
    state = {s.name: torch.zeros(9, *s.shape) for s in trained.spec.state}
    call = ({"obs": torch.randn(9, 4)}, torch.ones(9, dtype=torch.bool), state, torch.rand(9, 1))
    torch.testing.assert_close(trained.act(*call)[1], other.act(*call)[1], rtol=0, atol=0)


def test_a_pack_is_a_copy_that_training_does_not_touch(cartpole: EnvSpec) -> None:
    policy = build_policy({}, cartpole, 0)
    buffer = pack_weights(policy)
    before = buffer.copy()
    with torch.no_grad():
        policy.pi.weight.add_(1.0)
    np.testing.assert_array_equal(buffer, before)


def test_weights_of_the_wrong_size_are_refused_naming_both(cartpole: EnvSpec) -> None:
    policy = build_policy({}, cartpole, 0)
    size = pack_weights(policy).nbytes
    with pytest.raises(ProtocolError, match=rf"{size - 4} bytes .* {size} bytes"):
        unpack_weights(policy, np.zeros(size - 4, np.uint8))


def test_the_layout_names_dtypes_and_shapes(cartpole: EnvSpec) -> None:
    layout = weights_layout(build_policy({"hidden": [3], "shared": True}, cartpole, 0))
    assert ["pi.weight", "float32", [2, 3]] in layout
    assert ["v.bias", "float32", [1]] in layout


def test_values_of_final_observations_continue_the_state_of_their_column(cartpole: EnvSpec, record: Record) -> None:
    policy = build_policy({"lstm": 8}, cartpole, 0)
    arrays = record(policy, cartpole, 6, 3, seed=2)
    arrays["first"][1:] = False
    batch = to_batch(arrays, CPU)
    outputs = policy.unroll(batch.observation, batch.first, batch.state)
    # The next row's own observation, seen as a true last one, must be worth what the unroll says.
    index = torch.tensor([0 * 3 + 2, 4 * 3 + 1])
    final = {"obs": torch.stack([batch.observation["obs"][1, 2], batch.observation["obs"][5, 1]])}
    expected = torch.stack([outputs.values[1, 2], outputs.values[5, 1]])
    torch.testing.assert_close(policy.values_of_final(outputs, final, index), expected)


def test_box_actions_keep_shape_and_dtype_and_are_not_clipped() -> None:
    action = ActionSpec("box", "<f4", (2, 1), low=(-1e-3,) * 2, high=(1e-3,) * 2)
    policy = build_policy({}, EnvSpec("Box", (ArraySpec("obs", "<f4", (3,)),), action), 0)
    chosen, extras, _ = policy.act({"obs": torch.zeros(4, 3)}, torch.ones(4, dtype=torch.bool), {}, torch.rand(4, 2))
    assert chosen.shape == (4, 2, 1)
    assert chosen.dtype == torch.float32
    assert chosen.abs().max() > 1e-2
    assert extras["log_prob"].shape == (4,)


def test_the_action_has_the_dtype_of_its_space(cartpole: EnvSpec) -> None:
    narrow = replace(cartpole, action=replace(cartpole.action, dtype="<i4"))
    policy = build_policy({}, narrow, 0)
    action, _, _ = policy.act({"obs": torch.zeros(2, 4)}, torch.ones(2, dtype=torch.bool), {}, torch.rand(2, 1))
    assert action.dtype == torch.int32
