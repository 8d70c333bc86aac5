import numpy as np
import pytest
import torch
from torch import nn

from common.errors import ProtocolError
from common.rl.actor import pack_weights, unpack_weights, weights_layout
from common.rl.policy import build_policy
from common.types import EnvSpec


def test_any_module_goes_into_one_buffer_and_comes_back() -> None:
    trained, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    trained(torch.randn(8, 3) * 4)
    assert trained.running_var is not None
    buffer = pack_weights(trained)
    assert (buffer.dtype.str, buffer.ndim) == ("|u1", 1)
    buffer.flags.writeable = False
    unpack_weights(other, buffer)
    assert other.state_dict()["num_batches_tracked"].item() == 1
    torch.testing.assert_close(other.state_dict()["running_var"], trained.running_var, rtol=0, atol=0)
    assert weights_layout(trained)[4] == ["num_batches_tracked", "int64", []]


def test_a_pack_is_a_copy_that_training_does_not_touch() -> None:
    layer = nn.Linear(2, 2)
    buffer = pack_weights(layer)
    before = buffer.copy()
    with torch.no_grad():
        layer.weight.add_(1.0)
    np.testing.assert_array_equal(buffer, before)


def test_weights_of_the_wrong_size_are_refused_naming_both() -> None:
    layer = nn.Linear(4, 1)
    with pytest.raises(ProtocolError, match=r"weights of 16 bytes .* 20 bytes"):
        unpack_weights(layer, np.zeros(16, np.uint8))


def test_a_normaliser_uses_statistics_as_soon_as_they_are_unpacked(cartpole: EnvSpec) -> None:
    trained, other = (build_policy({"normalize_observations": True}, cartpole, 0) for _ in range(2))
    observation = {"obs": torch.randn(100, 4) * 5 + 2}
    trained.inputs.fold(observation)
    unpack_weights(other, pack_weights(trained))
    torch.testing.assert_close(other.inputs(observation)[0], trained.inputs(observation)[0], rtol=0, atol=0)


def test_the_layout_names_dtypes_and_shapes(cartpole: EnvSpec) -> None:
    layout = weights_layout(build_policy({"hidden": [3], "shared": True}, cartpole, 0))
    assert ["pi.weight", "float32", [2, 3]] in layout
    assert ["v.bias", "float32", [1]] in layout
