"""Encoders: from one observation as float [N, ...] to features [N, features].

Knows neither how observations are named and scaled, nor what becomes of the features. The built-in convolutions want
[N, C, H, W] in 0..1.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ConfigError
from common.rl.dense import Activation, tower
from common.types import ArraySpec

Layer = TypeVar("Layer", bound=nn.Module)
CONVOLUTIONS = ("nature_cnn", "minatar_cnn", "impala_resnet", "shallow_cnn")


def orthogonal(layer: Layer, gain: float = math.sqrt(2.0)) -> Layer:
    """Gives the layer with orthogonal weights of this gain and zero bias (Saxe et al. 2014)."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Dense layers, each followed by the activation."""

    def __init__(self, width: int, hidden: tuple[int, ...], activation: Activation) -> None:
        super().__init__()
        sizes = pairwise((width, *hidden))
        self.layers = nn.ModuleList([orthogonal(nn.Linear(before, after)) for before, after in sizes])
        self.activation = activation
        # Looked up once: a walk over the modules takes as long as a small layer.
        self._own: list[Tensor] = list(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return tower(x, self.activation, self._own)


class Residual(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, added to what came in (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # The skip needs x whole: an in-place ReLU would spoil it.
        inner: Tensor = self.second(functional.relu(self.first(functional.relu(x)), inplace=True))
        return x + inner


def _section(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(3, 2, padding=1), Residual(after), Residual(after)]


def _layers(name: str, channels: int) -> tuple[list[nn.Module], int]:
    """Gives the layers before the flattening, and the features after it."""
    if name == "minatar_cnn":  # Young and Tian 2019
        return [orthogonal(nn.Conv2d(channels, 16, 3)), nn.ReLU()], 128
    if name == "impala_resnet":  # Espeholt et al. 2018, the deep network
        sections = [layer for pair in pairwise((channels, 16, 32, 32)) for layer in _section(*pair)]
        return [*sections, nn.ReLU()], 256
    # Mnih et al. 2015, and Espeholt et al. 2018, the shallow network
    sizes, features = (
        ([(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512) if name == "nature_cnn" else ([(16, 8, 4), (32, 4, 2)], 256)
    )
    layers: list[nn.Module] = []
    for out, kernel, stride in sizes:
        layers += [orthogonal(nn.Conv2d(channels, out, kernel, stride)), nn.ReLU()]
        channels = out
    return layers, features


def channels_last(shape: tuple[int, ...]) -> bool:
    """Says whether an image of this shape is [H, W, C] rather than [C, H, W].

    Where two neighbours alone are equal they are H and W. Else the fewer are the channels, the last if as many.
    """
    first, second, third = shape
    if (first == second) != (second == third):
        return first == second
    return third <= first


def convolution(name: str, spec: ArraySpec) -> nn.Sequential:
    """Builds one of CONVOLUTIONS for an image; one too small for it is a ConfigError."""
    last = channels_last(spec.shape)
    channels = spec.shape[-1] if last else spec.shape[0]
    height, width = spec.shape[:2] if last else spec.shape[1:]
    layers, features = _layers(name, channels)
    flat = _outputs(layers, channels, height, width)
    if not flat:
        others = [n for n in CONVOLUTIONS if _outputs(_layers(n, channels)[0], channels, height, width)]
        message = f"network.name: {name!r} cannot take observation {spec.name!r} of shape {spec.shape}"
        raise ConfigError(message, f"choose {', '.join([*others, 'mlp'])}, or resize the observation")
    return nn.Sequential(*layers, nn.Flatten(), orthogonal(nn.Linear(flat, features)), nn.ReLU())


def _outputs(layers: list[nn.Module], channels: int, height: int, width: int) -> int:
    """Gives how many numbers come out of layers for an image; 0 where it is too small for them."""
    try:
        with torch.no_grad():
            return int(nn.Sequential(*layers)(torch.zeros(1, channels, height, width)).numel())
    except RuntimeError:
        return 0
