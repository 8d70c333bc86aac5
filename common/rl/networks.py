"""The `network` section, and the way from named observations to features: what is scaled, joined, and encoded by what.

Knows neither actions nor losses. Batches are [N, ...]: whoever has time-major data flattens it first.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from common.errors import MISTAKES, ConfigError, nearest
from common.rl.compiled import Compiled
from common.rl.encoders import CONVOLUTIONS, MLP, channels_last, convolution
from common.rl.ops.normalize import ObservationNormalizer
from common.rl.processor import has_bf16
from common.rl.settings import load_attribute, read_settings
from common.types import ArraySpec

log = logging.getLogger("headrace.network")

BUILT_IN = ("mlp", *CONVOLUTIONS)
_IMAGE_DTYPES = (np.dtype(np.uint8), np.dtype(np.bool_))
# Encoders that are faster in channels_last on a CPU: forward alone, and forward and backward.
_LAST_FORWARD = ("impala_resnet",)
_LAST_BACKWARD = ("impala_resnet", "nature_cnn", "shallow_cnn")
_Width = Annotated[int, Field(gt=0)]


class EncoderConfig(BaseModel):
    """What `network.encoders` may set for one observation; the rest is as for all others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "mlp"
    hidden: tuple[_Width, ...] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"


class NetworkConfig(BaseModel):
    """The `network` section; `name` is a built-in one, or package.module:attr, a callable(ArraySpec) -> nn.Module.

    A module of your own encodes each observation: [N, *shape] to [N, features]. Image entries (3-D, uint8 or bool) go
    through the convolution, all others together through one MLP of `hidden`; the outputs are concatenated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("mlp", description="a built-in network, or `package.module:attr`")
    hidden: tuple[_Width, ...] = Field((64, 64), description="widths of the MLP's layers")
    activation: Literal["tanh", "relu"] = Field("tanh", description="of the MLP's layers")
    encoders: dict[str, EncoderConfig] = Field(
        default_factory=dict, description="by observation: name, hidden and activation of an encoder of its own"
    )
    lstm: int = Field(0, ge=0, description="hidden size of the LSTM after the encoders; 0: none")
    gru: int = Field(0, ge=0, description="hidden size of a GRU, in place of the LSTM; 0: none")
    shared: bool | None = Field(
        None, description="actor and critic share encoders and core; null: with an LSTM or GRU they do, else not"
    )
    last_action: bool = Field(False, description="the last action joins the features, one-hot or scaled to ±1")
    last_reward: bool = Field(False, description="the last reward joins the features, cut to ±1")
    action_mask: str = Field("", description="the observation that says which choices are allowed; empty: none")
    distribution: Literal["normal", "tanh_normal", "beta"] = Field(
        "normal", description="of Box actions; normal: unbounded, clipped by the environment; the others: within bounds"
    )
    sigma: Literal["free", "state"] = Field(
        "free", description="std of normal Box actions; free: one per component; state: from the observation"
    )
    log_std_init: float = Field(0.0, description="log of the first std of Box actions")
    normalize_observations: bool = Field(False, description="by running mean and std; images are only scaled to 0..1")
    popart: bool = Field(False, description="values are learned in units of their targets' running mean and std")
    channels_last: bool | None = Field(
        None, description="memory format of images, for speed alone; null: [measured](algorithms.md#speed-of-images)"
    )
    bf16: bool = Field(
        False,
        description="convolutions in bfloat16, where that is about twice as fast; float32 on other hardware",
    )
    compile: bool = Field(
        False, description="encoders of images, and modules of your own, through torch.compile, if that works here"
    )


def read_network(values: Mapping[str, Any]) -> NetworkConfig:
    """Validates the `network` section; a ConfigError names the key, the value and the nearest valid one."""
    config = read_settings(NetworkConfig, values, "network")
    named = {f"encoders.{entry}.name": encoder.name for entry, encoder in config.encoders.items()}
    for key, name in {"name": config.name, **named}.items():
        if name not in BUILT_IN and ":" not in name:
            raise ConfigError(f"network.{key}: there is no {name!r}", nearest(name, BUILT_IN))
    if config.lstm and config.gru:
        raise ConfigError(f"network.lstm={config.lstm} and network.gru={config.gru}", "set one of them to 0")
    return config


def _is_image(spec: ArraySpec) -> bool:
    return len(spec.shape) == 3 and np.dtype(spec.dtype) in _IMAGE_DTYPES


def _encoder_of(spec: ArraySpec, config: NetworkConfig) -> EncoderConfig:
    """Gives the settings of the encoder that one observation goes through."""
    common = EncoderConfig(name=config.name, hidden=config.hidden, activation=config.activation)
    own = config.encoders.get(spec.name)
    chosen = common if own is None else common.model_copy(update=own.model_dump(exclude_unset=True))
    if chosen.name in CONVOLUTIONS and not _is_image(spec):
        if own is not None and "name" in own.model_fields_set:
            raise ConfigError(
                f"network.encoders.{spec.name}.name={own.name!r}: {spec.shape} {spec.dtype} is no image", "choose mlp"
            )
        return chosen.model_copy(update={"name": "mlp"})
    return chosen


def _warn_of_unread(config: NetworkConfig) -> None:
    """Says what is set for images where no observation is one; a file for all environments may well set it."""
    if config.name in CONVOLUTIONS:
        log.warning("network.name=%s: no observation is an image (3-D, uint8 or bool), an MLP takes them", config.name)
    for key, value in {"bf16": config.bf16 or None, "channels_last": config.channels_last}.items():
        if value is not None:
            log.warning("network.%s=%s does nothing: no observation is an image", key, str(value).lower())
    if config.compile:
        log.warning("network.compile=true: there is nothing to compile, an MLP is one piece of code already")


@functools.cache
def _lowers(device: torch.device) -> bool:
    if not (has := has_bf16(device)):
        log.warning("network.bf16=true: %s has no fast bfloat16, float32 is faster here and taken", device)
    return has


def _channels_last(x: Tensor) -> Tensor:
    """Gives images [N, C, H, W] in that memory format; on bytes this way takes less than half of `to`'s time."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return torch.stack(x.unbind(1), -1).permute(0, 3, 1, 2)


class Inputs(nn.Module):
    """Turns named observations into what trunks take: images as float [N, C, H, W], the rest as flat [N, width].

    uint8 becomes [0, 1]; everything else keeps its value. The flat part is normalised if the config says so.
    `channels_last` is the memory format of images; None: by encoder, and by whether there is a gradient to come. With
    `either_format` the config leaves it to whoever can time both.
    """

    def __init__(self, specs: tuple[ArraySpec, ...], config: NetworkConfig) -> None:
        super().__init__()
        unknown = sorted(config.encoders.keys() - {spec.name for spec in specs})
        if unknown:
            message = f"network.encoders.{unknown[0]}: there is no such observation"
            raise ConfigError(message, nearest(unknown[0], [spec.name for spec in specs]))
        names = {spec.name: _encoder_of(spec, config).name for spec in specs}
        self.images = tuple(spec for spec in specs if names[spec.name] != "mlp")
        flat = [spec for spec in specs if names[spec.name] == "mlp"]
        joined = [spec for spec in flat if spec.name not in config.encoders]
        own = [spec for spec in flat if spec.name in config.encoders]
        self.flat = tuple(joined + own)
        groups = [joined, *([spec] for spec in own)] if joined else [[spec] for spec in own]
        self.widths = [sum(math.prod(spec.shape) for spec in group) for group in groups]
        self.settings = [_encoder_of(group[0], config) for group in groups]
        self.width = sum(self.widths)
        built_in = {spec.name for spec in self.images if ":" not in names[spec.name]}
        self._permuted = {spec.name for spec in self.images if spec.name in built_in and channels_last(spec.shape)}
        self._convolved = {name: names[name] for name in built_in}
        # Compiled code is made for one format: another would be compiled anew.
        self.either_format = config.channels_last is None and bool(built_in) and not config.compile
        self.channels_last = config.channels_last
        self._bf16 = config.bf16
        if not self.images:
            _warn_of_unread(config)
        normalizes = config.normalize_observations and self.width > 0
        self.normalizer = ObservationNormalizer(self.width) if normalizes else None

    def _flatten(self, observation: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for spec in self.flat:
            x = observation[spec.name]
            x = x.reshape(x.shape[0], -1)
            parts.append(x.float() / 255.0 if x.dtype == torch.uint8 else x.float())
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @staticmethod
    def _last(x: Tensor, encoder: str) -> bool:
        learns = torch.is_grad_enabled() and x.device.type == "cpu"
        return encoder in (_LAST_BACKWARD if learns else _LAST_FORWARD)

    def _image(self, x: Tensor, name: str) -> Tensor:
        x = x.permute(0, 3, 1, 2) if name in self._permuted else x
        scaled, dtype = x.dtype == torch.uint8, torch.float32
        if name in self._convolved:
            # Bytes are exact in bfloat16, and their quotient is what the convolution would round it to.
            dtype = torch.bfloat16 if scaled and self._bf16 and _lowers(x.device) else dtype
            last = self._last(x, self._convolved[name]) if self.channels_last is None else self.channels_last
            x = _channels_last(x).to(dtype) if last else x.to(dtype, memory_format=torch.contiguous_format)
        return x.to(dtype).div_(255.0) if scaled else x.float()

    def forward(self, observation: Mapping[str, Tensor]) -> list[Tensor]:
        """Gives the images in order, then the flat parts: what is joined, then what has an MLP of its own."""
        inputs = [self._image(observation[spec.name], spec.name) for spec in self.images]
        if self.flat:
            flat = self._flatten(observation)
            flat = flat if self.normalizer is None else self.normalizer(flat)
            inputs.extend([flat] if len(self.widths) == 1 else torch.split(flat, self.widths, -1))
        return inputs

    def fold(self, observation: Mapping[str, Tensor], valid: Tensor | None = None) -> None:
        """Merges observations [N, ...] into the normaliser's statistics, where there is one.

        `valid` says which of them count, N in all; None: all do.
        """
        if self.normalizer is not None:
            flat = self._flatten(observation)
            self.normalizer.fold(flat if valid is None else flat[valid.flatten()])


def _built(path: str, spec: ArraySpec) -> nn.Module:
    """Calls one's own `package.module:attr` with an observation's spec; a ConfigError says what is wrong with it."""
    make = load_attribute(path, "network.name")
    try:
        module = make(spec)
    except MISTAKES as error:
        text = f"network.name={path!r} raises {type(error).__name__} for observation {spec.name!r}: {error}"
        raise ConfigError(text, "mend it: it is called with an ArraySpec") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"network.name={path!r} gives a {type(module).__name__}", "return a torch.nn.Module")
    return module


class Trunk(nn.Module):
    """One encoder per input, their outputs concatenated: [N, features].

    `bf16` runs those of images in bfloat16.
    """

    def __init__(self, inputs: Inputs, config: NetworkConfig) -> None:
        super().__init__()
        encoders: list[nn.Module] = []
        for spec in inputs.images:
            name = _encoder_of(spec, config).name
            custom = ":" in name
            encoders.append(_built(name, spec) if custom else convolution(name, spec))
        for width, settings in zip(inputs.widths, inputs.settings, strict=True):
            encoders.append(MLP(width, settings.hidden, settings.activation))
        self.encoders = nn.ModuleList(encoders)
        self._images = len(inputs.images)
        names = [f"the encoder of {spec.name}" for spec in inputs.images] if config.compile else []
        # No modules, so that weights keep their names.
        compiled = [Compiled(encoder, name) for encoder, name in zip(encoders, names, strict=False)]
        self._passes: list[Callable[[Tensor], Tensor]] = [*compiled, *encoders[len(compiled) :]]
        self.bf16 = config.bf16

    def _encode(self, inputs: list[Tensor]) -> list[Tensor]:
        pairs = list(zip(self._passes, inputs, strict=True))
        if not self.bf16 or not self._images or not _lowers(inputs[0].device):
            return [encoder(x) for encoder, x in pairs]
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            low = [encoder(x).float() for encoder, x in pairs[: self._images]]
        return low + [encoder(x) for encoder, x in pairs[self._images :]]

    def forward(self, inputs: list[Tensor]) -> Tensor:
        encoded = self._encode(inputs)
        return encoded[0] if len(encoded) == 1 else torch.cat(encoded, -1)


def width_of(trunk: Trunk, inputs: Inputs) -> int:
    """Gives how many features a trunk makes of what `inputs` gives."""
    specs = (*inputs.images, *inputs.flat)
    example = {s.name: torch.from_numpy(np.zeros((1, *s.shape), np.dtype(s.dtype))) for s in specs}
    with torch.no_grad():
        return trunk(inputs(example)).shape[1]  # type: ignore[no-any-return]
