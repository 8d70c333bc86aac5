import re
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import ConfigError
from common.rl.networks import Inputs, Trunk, read_network
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
        ({"lstm": 8, "gru": 4}, ("network.lstm=8", "network.gru=4", "set one of them to 0")),
        ({"encoders": {"a": {"name": "ml"}}}, ("network.encoders.a.name", "'ml'", "did you mean mlp?")),
        ({"encoders": {"a": {"lstm": 3}}}, ("network.encoders.a.lstm", "3")),
        ({"distribution": "gauss"}, ("network.distribution", "gauss", "tanh_normal")),
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
        ("impala_resnet", ArraySpec("obs", "|u1", (4, 84, 84)), 256),
        ("impala_resnet", ArraySpec("obs", "|u1", (10, 10, 3)), 256),
        ("shallow_cnn", ArraySpec("obs", "|u1", (84, 84, 4)), 256),
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
    with pytest.raises(ConfigError, match=re.escape("'pixels' of shape (10, 10, 3)")) as caught:
        Trunk(Inputs((ArraySpec("pixels", "|u1", (10, 10, 3)),), config), config)
    assert caught.value.remedy == "choose minatar_cnn, impala_resnet, mlp, or resize the observation"


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


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("os:getcwd", r"network\.name='os:getcwd' raises TypeError for observation 'obs': .*takes no arguments"),
        ("builtins:str", r"network\.name='builtins:str' gives a str \(return a torch\.nn\.Module"),
    ],
)
def test_a_module_that_cannot_be_made_is_a_config_error(path: str, words: str) -> None:
    config = read_network({"name": path})
    with pytest.raises(ConfigError, match=words):
        Trunk(Inputs((ArraySpec("obs", "<f4", (2,)),), config), config)


def test_an_observation_may_have_an_encoder_of_its_own() -> None:
    specs = (ArraySpec("a", "<f4", (2,)), ArraySpec("goal", "<f4", (3,)), ArraySpec("b", "<f4", (1,)))
    config = read_network({"encoders": {"goal": {"hidden": [5]}}, "hidden": [7]})
    inputs = Inputs(specs, config)
    joined, goal = inputs({"a": torch.ones(1, 2), "goal": torch.full((1, 3), 4.0), "b": torch.full((1, 1), 2.0)})
    assert joined.tolist() == [[1.0, 1.0, 2.0]]
    assert goal.tolist() == [[4.0, 4.0, 4.0]]
    assert Trunk(inputs, config)([joined, goal]).shape == (1, 12)


def test_an_image_may_go_through_the_mlp_and_another_through_a_convolution() -> None:
    specs = (ArraySpec("map", "|b1", (10, 10, 4)), ArraySpec("pixels", "|u1", (36, 36, 3)))
    config = read_network({"name": "nature_cnn", "encoders": {"map": {"name": "minatar_cnn"}}})
    inputs = Inputs(specs, config)
    images = inputs({s.name: torch.zeros(2, *s.shape, dtype=torch.bool) for s in specs})
    assert Trunk(inputs, config)(images).shape == (2, 128 + 512)
    flat = read_network({"name": "nature_cnn", "encoders": {"map": {"name": "mlp"}}})
    assert Inputs(specs, flat).width == 400


def test_a_convolution_named_for_what_is_no_image_is_refused() -> None:
    config = read_network({"encoders": {"obs": {"name": "minatar_cnn"}}})
    with pytest.raises(ConfigError, match=r"network\.encoders\.obs\.name='minatar_cnn': \(4,\) <f4 is no image"):
        Inputs((ArraySpec("obs", "<f4", (4,)),), config)


@pytest.mark.parametrize("value", [{"name": "nature_cnn"}, {"bf16": True}, {"channels_last": False}, {"compile": True}])
def test_what_is_set_for_images_is_warned_of_where_there_are_none(
    value: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    image, vector = ArraySpec("pixels", "|u1", (36, 36, 3)), ArraySpec("obs", "<f4", (36, 36, 3))
    ((key, set_to),) = value.items()
    Inputs((image, vector), read_network({"name": "nature_cnn", **value}))
    assert caplog.messages == []
    Inputs((vector,), read_network(value))
    (said,) = caplog.messages
    assert said.startswith(f"network.{key}={set_to if key == 'name' else str(set_to).lower()}")


def test_normalised_observations_reach_every_flat_encoder() -> None:
    specs = (ArraySpec("a", "<f4", (1,)), ArraySpec("goal", "<f4", (1,)))
    inputs = Inputs(specs, read_network({"encoders": {"goal": {}}, "normalize_observations": True}))
    inputs.fold({"a": torch.tensor([[0.0], [2.0]]), "goal": torch.tensor([[10.0], [30.0]])})
    a, goal = inputs({"a": torch.tensor([[2.0]]), "goal": torch.tensor([[10.0]])})
    assert (a.item(), goal.item()) == (pytest.approx(1.0), pytest.approx(-1.0))


def test_only_valid_observations_join_the_statistics() -> None:
    inputs = Inputs((ArraySpec("a", "<f4", (1,)),), read_network({"normalize_observations": True}))
    assert inputs.normalizer is not None
    moments = inputs.normalizer.moments
    rows = {"a": torch.tensor([[0.0], [2.0], [1e6], [4.0]])}
    inputs.fold(rows, torch.tensor([[True, True], [False, True]]))
    assert (moments.count.item(), moments.mean.item()) == (3.0, 2.0)
    inputs.fold(rows, torch.zeros(4, dtype=torch.bool))
    assert (moments.count.item(), moments.mean.item()) == (3.0, 2.0)
    inputs.fold({"a": torch.tensor([[6.0]])})
    assert (moments.count.item(), moments.mean.item()) == (4.0, 3.0)


@pytest.mark.parametrize(
    ("name", "shape", "alone", "with_gradient"),
    [
        ("nature_cnn", (4, 36, 36), False, True),
        ("shallow_cnn", (36, 36, 4), False, True),
        ("impala_resnet", (4, 36, 36), True, True),
        ("minatar_cnn", (10, 10, 4), False, False),
    ],
)
def test_images_lie_as_was_measured_to_be_faster_with_a_gradient_to_come_and_without(
    name: str, shape: tuple[int, ...], alone: bool, with_gradient: bool
) -> None:
    spec = ArraySpec("image", "|u1", shape)
    inputs = Inputs((spec,), read_network({"name": name}))

    def last() -> bool:
        (image,) = inputs({"image": torch.zeros((2, *shape), dtype=torch.uint8)})
        return image.is_contiguous(memory_format=torch.channels_last)

    assert last() is with_gradient
    with torch.no_grad():
        assert last() is alone
    inputs.channels_last = not alone
    with torch.inference_mode():
        assert last() is not alone
