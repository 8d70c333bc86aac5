"""What acts: the interface by which an inference-server runs any algorithm's network, and its weights as one buffer.

Owns the layout of weights on the wire. Must not know a loss, an optimiser, or how an action is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ConfigError, ProtocolError
from common.rl.ops.normalize import ObservationNormalizer, PopArt
from common.types import PolicySpec


@dataclass(frozen=True, slots=True)
class Seen:
    """What one step of acting looks at, [B, ...] each.

    `first` is bool: an episode begins here, and what was remembered is dropped. `reward` came with the observation,
    `env` int64 numbers the environments, `noise` [B, noise_size] are uniforms in (0, 1) keyed by environment and step.
    """

    observation: dict[str, Tensor]
    first: Tensor
    reward: Tensor
    state: dict[str, Tensor]
    noise: Tensor
    env: Tensor


@dataclass(frozen=True, slots=True)
class Acted:
    """One step's actions [B, ...], the extras that go into the unroll, and the state that rides to the next step."""

    action: Tensor
    extras: dict[str, Tensor]
    state: dict[str, Tensor]


class Actor(nn.Module):
    """The interface of what acts. `acting` holds the scalars that come with each version of the weights.

    An inference-server replaces `acting` as a whole; before the first one it is empty.
    """

    spec: PolicySpec
    noise_size: int
    acting: dict[str, float]

    def act(self, seen: Seen, greedy: bool = False) -> Acted:
        """Chooses the actions; call it under inference_mode. `greedy` takes the best ones and explores nothing."""
        raise NotImplementedError


def load_policy(actor: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the parameters and buffers of a checkpoint; raises ConfigError for those of another network."""
    try:
        actor.load_state_dict(state)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        text = f"the checkpoint is of another network than `network:` and `algorithm:` describe: {why:.300}"
        raise ConfigError(text, "use the settings that the run was trained with") from None


def weights_layout(actor: nn.Module) -> list[list[Any]]:
    """Gives [name, dtype, shape] of each tensor in the packed buffer, in order, to compare with the other side's."""
    state = actor.state_dict()
    return [[name, str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in state.items()]


def _bytes(x: Tensor) -> Tensor:
    return x.detach().reshape(-1).view(torch.uint8)


def pack_weights(actor: nn.Module) -> NDArray[np.uint8]:
    """Gives all weights and buffers as one new contiguous uint8 array, in the order of `weights_layout`."""
    packed: NDArray[np.uint8] = torch.cat([_bytes(x) for x in actor.state_dict().values()]).cpu().numpy()
    return packed


@torch.no_grad()
def unpack_weights(actor: nn.Module, buffer: NDArray[np.uint8]) -> None:
    """Writes a packed buffer, which may be read-only, into the actor in place; a wrong size is a ProtocolError."""
    targets = [_bytes(x) for x in actor.state_dict().values()]
    size = sum(x.numel() for x in targets)
    if buffer.nbytes != size:
        raise ProtocolError(
            f"weights of {buffer.nbytes} bytes came for a policy of {size} bytes",
            "the learner and the inference-server must build the same network for the same environment",
        )
    source = torch.from_numpy(np.array(buffer, np.uint8).reshape(-1)).to(targets[0].device)
    for target, part in zip(targets, torch.split(source, [x.numel() for x in targets]), strict=True):
        target.copy_(part)
    for module in actor.modules():
        if isinstance(module, ObservationNormalizer | PopArt):
            module.refresh()
