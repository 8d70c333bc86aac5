"""Networks: from named observations to features. Encoders, the LSTM core, and the settings that choose them.

Knows neither actions nor losses. Batches are [N, ...]: whoever has time-major data flattens it first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ConfigError
from common.rl.ops.normalize import ObservationNormalizer
from common.rl.settings import load_attribute, nearest, read_settings
from common.types import ArraySpec

Layer = TypeVar("Layer", bound=nn.Module)
BUILT_IN = ("mlp", "nature_cnn", "minatar_cnn")
_IMAGE_DTYPES = (np.dtype(np.uint8), np.dtype(np.bool_))


class NetworkConfig(BaseModel):
    """The `network` section; `name` is a built-in one, or package.module:attr, a callable(ArraySpec) -> nn.Module.

    A module of your own encodes each observation: [N, *shape] to [N, features]. Image entries (3-D, uint8 or bool) go
    through the convolution of a `*_cnn`, all others together through one MLP of `hidden`; the outputs are concatenated.
    `lstm` is its hidden size, or 0 for none. Actor and critic share their trunk if `shared`, and always under an LSTM.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "mlp"
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"
    lstm: int = Field(0, ge=0)
    shared: bool = False
    normalize_observations: bool = False
    log_std_init: float = 0.0


def read_network(values: Mapping[str, Any]) -> NetworkConfig:
    """Validates the `network` section; a ConfigError names the key, the value and the nearest valid one."""
    config = read_settings(NetworkConfig, values, "network")
    if config.name not in BUILT_IN and ":" not in config.name:
        raise ConfigError(f"network.name: there is no {config.name!r}", nearest(config.name, BUILT_IN))
    return config


def orthogonal(layer: Layer, gain: float = math.sqrt(2.0)) -> Layer:
    """Gives the layer with orthogonal weights of this gain and zero bias (Saxe et al. 2014)."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Dense layers, each followed by the activation; called as functions, since a module call costs as much as one."""

    def __init__(self, width: int, hidden: tuple[int, ...], activation: str) -> None:
        super().__init__()
        sizes = pairwise((width, *hidden))
        self.layers = nn.ModuleList([orthogonal(nn.Linear(before, after)) for before, after in sizes])
        self._activation = torch.tanh if activation == "tanh" else torch.relu

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            x = self._activation(functional.linear(x, layer.weight, layer.bias))
        return x


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[-1] < shape[0]


def _convolution(name: str, spec: ArraySpec) -> nn.Sequential:
    channels = spec.shape[-1] if _channels_last(spec.shape) else spec.shape[0]
    height, width = spec.shape[:2] if _channels_last(spec.shape) else spec.shape[1:]
    if name == "minatar_cnn":
        # Young and Tian 2019
        layers, features = [nn.Conv2d(channels, 16, 3), nn.ReLU()], 128
    else:
        # Mnih et al. 2015
        layers = [nn.Conv2d(channels, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 3, 1), nn.ReLU()]
        features = 512
    body = nn.Sequential(*[orthogonal(layer) for layer in layers], nn.Flatten())
    try:
        flat = body(torch.zeros(1, channels, height, width)).shape[1]
    except RuntimeError as error:
        message = f"network.name: {name!r} cannot take observation {spec.name!r} of shape {spec.shape}"
        raise ConfigError(message, "choose mlp, or resize the observation") from error
    return body.extend([orthogonal(nn.Linear(flat, features)), nn.ReLU()])


class Inputs(nn.Module):
    """Turns named observations into what trunks take: images as float [N, C, H, W], the rest as one flat [N, width].

    uint8 becomes [0, 1]; everything else keeps its value. The flat part is normalised if the config says so.
    """

    def __init__(self, specs: tuple[ArraySpec, ...], config: NetworkConfig) -> None:
        super().__init__()
        self._specs = {spec.name: spec for spec in specs}
        convolves = config.name.endswith("_cnn") and config.name in BUILT_IN
        custom = ":" in config.name
        self.images = tuple(
            spec
            for spec in specs
            if custom or (convolves and len(spec.shape) == 3 and np.dtype(spec.dtype) in _IMAGE_DTYPES)
        )
        self._flat = tuple(spec for spec in specs if spec not in self.images)
        self._permuted = {s.name for s in self.images if not custom and _channels_last(s.shape)}
        self.width = sum(math.prod(spec.shape) for spec in self._flat)
        normalizes = config.normalize_observations and self.width > 0
        self.normalizer = ObservationNormalizer(self.width) if normalizes else None

    def _flatten(self, observation: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for spec in self._flat:
            x = observation[spec.name]
            x = x.reshape(x.shape[0], -1)
            parts.append(x.float() / 255.0 if x.dtype == torch.uint8 else x.float())
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _image(self, x: Tensor, name: str) -> Tensor:
        x = x.float() / 255.0 if x.dtype == torch.uint8 else x.float()
        return x.permute(0, 3, 1, 2) if name in self._permuted else x

    def forward(self, observation: Mapping[str, Tensor]) -> list[Tensor]:
        """Gives the images in order, then the flat part if there is one."""
        inputs = [self._image(observation[spec.name], spec.name) for spec in self.images]
        if self._flat:
            flat = self._flatten(observation)
            inputs.append(flat if self.normalizer is None else self.normalizer(flat))
        return inputs

    def fold(self, observation: Mapping[str, Tensor]) -> None:
        """Merges observations [N, ...] into the normaliser's statistics, where there is one."""
        if self.normalizer is not None:
            self.normalizer.fold(self._flatten(observation))


class Trunk(nn.Module):
    """One encoder per input, their outputs concatenated: [N, features]."""

    def __init__(self, inputs: Inputs, config: NetworkConfig) -> None:
        super().__init__()
        if ":" in config.name:
            build = load_attribute(config.name, "network.name")
            encoders = [build(spec) for spec in inputs.images]
        else:
            encoders = [_convolution(config.name, spec) for spec in inputs.images]
        if inputs.width:
            encoders.append(MLP(inputs.width, config.hidden, config.activation))
        self.encoders = nn.ModuleList(encoders)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        if len(inputs) == 1:
            return self.encoders[0](inputs[0])  # type: ignore[no-any-return]
        return torch.cat([encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)], -1)


class LSTM(nn.Module):
    """An LSTM core whose state is zeroed wherever an episode begins (Hochreiter and Schmidhuber 1997)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        # Gates lie as input, forget, output, cell: one sigmoid serves the first three.
        self.input = orthogonal(nn.Linear(width, 4 * size), 1.0)
        self.recurrent = orthogonal(nn.Linear(size, 4 * size, bias=False), 1.0)

    def _cell(self, driven: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = driven + self.recurrent(h)
        i, f, o = gates[:, : 3 * self.size].sigmoid().chunk(3, -1)
        c = torch.addcmul(f * c, i, gates[:, 3 * self.size :].tanh())
        return o * c.tanh(), c

    def step(self, features: Tensor, first: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the (h, c) [N, size] that follow; `first` [N] bool is where the state is dropped, None for nowhere."""
        if first is not None:
            keep = (~first).to(h.dtype).unsqueeze(-1)
            h, c = h * keep, c * keep
        return self._cell(self.input(features), h, c)

    def unroll(self, features: Tensor, first: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Gives (h, c) after each row, [T, B, size] both, from the state before the first; `first` is [T, B]."""
        driven = self.input(features).unbind(0)
        keep = (~first).to(h.dtype).unsqueeze(-1).unbind(0)
        resets = first.any(1).tolist()
        hs, cs = [], []
        for t, x in enumerate(driven):
            if resets[t]:
                h, c = h * keep[t], c * keep[t]
            h, c = self._cell(x, h, c)
            hs.append(h)
            cs.append(c)
        return torch.stack(hs), torch.stack(cs)
