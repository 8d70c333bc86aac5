import re
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import ConfigError
from common.rl.networks import LSTM, Inputs, Trunk, read_network
from common.types import ArraySpec


class Doubling(nn.Module):
    def __init__(self, spec: ArraySpec) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full(spec.shape, 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hiden": [64]}, ("network.hiden", "[64]", "did you mean hidden?")),
        ({"lstm": -1}, ("network.lstm", "-1")),
        ({"activation": "gelu"}, ("network.activation", "gelu", "tanh", "relu")),
        ({"name": "natur_cnn"}, ("network.name", "natur_cnn", "did you mean nature_cnn?")),
        ({"hidden": [64, 0]}, ("network.hidden.1", "0")),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_what_is_allowed(values: dict[str, Any], words: tuple[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_network(values)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "spec", "features"),
    [
        ("mlp", ArraySpec("obs", "<f4", (3, 2)), 64),
        ("nature_cnn", ArraySpec("obs", "|u1", (4, 84, 84)), 512),
        ("nature_cnn", ArraySpec("obs", "|u1", (84, 84, 4)), 512),
        ("minatar_cnn", ArraySpec("obs", "|b1", (10, 10, 4)), 128),
        ("nature_cnn", ArraySpec("obs", "<f4", (5,)), 64),
    ],
)
def test_each_network_takes_its_observations(name: str, spec: ArraySpec, features: int) -> None:
    config = read_network({"name": name})
    inputs = Inputs((spec,), config)
    dtype = {"<f4": torch.float32, "|u1": torch.uint8, "|b1": torch.bool}[spec.dtype]
    assert Trunk(inputs, config)(inputs({"obs": torch.zeros(6, *spec.shape, dtype=dtype)})).shape == (6, features)


def test_images_become_channels_first_between_zero_and_one() -> None:
    spec = ArraySpec("obs", "|u1", (36, 36, 3))
    inputs = Inputs((spec,), read_network({"name": "nature_cnn"}))
    image = torch.zeros(1, 36, 36, 3, dtype=torch.uint8)
    image[0, 5, 7, 2] = 255
    (x,) = inputs({"obs": image})
    assert x.shape == (1, 3, 36, 36)
    assert x[0, 2, 5, 7].item() == 1.0


def test_an_image_too_small_for_the_network_is_a_config_error() -> None:
    config = read_network({"name": "nature_cnn"})
    with pytest.raises(ConfigError, match=re.escape("'pixels' of shape (10, 10, 3)")):
        Trunk(Inputs((ArraySpec("pixels", "|u1", (10, 10, 3)),), config), config)


def test_a_module_of_ones_own_encodes_each_observation() -> None:
    config = read_network({"name": f"{__name__}:Doubling"})
    inputs = Inputs((ArraySpec("a", "<f4", (2,)), ArraySpec("b", "<f4", (1,))), config)
    config = config.model_copy(update={"name": "torch.nn:Identity"})
    trunk = Trunk(inputs, config)
    out = trunk(inputs({"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[3.0]])}))
    assert out.tolist() == [[1.0, 2.0, 3.0]]


def test_a_module_that_cannot_be_loaded_is_a_config_error() -> None:
    config = read_network({"name": "torch.nn:Idenity"})
    with pytest.raises(ConfigError, match=r"network\.name: 'torch\.nn:Idenity'"):
        Trunk(Inputs((ArraySpec("obs", "<f4", (2,)),), config), config)


def test_an_lstm_unrolled_is_the_same_as_stepped_and_forgets_where_an_episode_begins() -> None:
    torch.manual_seed(0)
    lstm = LSTM(3, 5)
    features, first = torch.randn(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    first[3, 1] = True
    h0, c0 = torch.randn(2, 2, 5)
    hs, cs = lstm.unroll(features, first, h0, c0)
    h, c = h0, c0
    for t in range(6):
        h, c = lstm.step(features[t], first[t], h, c)
        torch.testing.assert_close(hs[t], h)
        torch.testing.assert_close(cs[t], c)
    fresh, _ = lstm.step(features[3], None, torch.zeros(2, 5), torch.zeros(2, 5))
    torch.testing.assert_close(hs[3, 1], fresh[1])
    assert not torch.allclose(hs[3, 0], fresh[0])


def test_an_lstm_agrees_with_torchs_own() -> None:
    torch.manual_seed(0)
    lstm, reference = LSTM(3, 5), nn.LSTMCell(3, 5)
    order = torch.cat([torch.arange(10), torch.arange(15, 20), torch.arange(10, 15)])  # i f o g from i f g o
    with torch.no_grad():
        reference.bias_hh.zero_()
        lstm.input.weight.copy_(reference.weight_ih[order])
        lstm.input.bias.copy_(reference.bias_ih[order])
        lstm.recurrent.weight.copy_(reference.weight_hh[order])
    x, h, c = torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 5)
    for mine, theirs in zip(lstm.step(x, None, h, c), reference(x, (h, c)), strict=True):
        torch.testing.assert_close(mine, theirs)
