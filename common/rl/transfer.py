"""Named arrays to a device and back: as they are on the CPU, and in one copy each way where there is another.

To another device all arrays go side by side in one pinned buffer, so that a batch is one transfer. The buffer is
torch's own to reuse: it hands pinned memory out again only after the copies from it have ended. Knows no batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError
from common.types import Arrays

# Where an array may start in a packed buffer: what any dtype, and any load of the device's, is content with.
_ALIGNMENT = 256


def device_of(key: str, name: str) -> torch.device:
    """Gives the device that setting `key` names; raises ConfigError where this machine, or this torch, has none."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # torch says so with an AssertionError, a RuntimeError or an error of its own, as it comes.
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise ConfigError(f"{key}={name!r}: {why:.200}", "set it to cpu, or install a torch that has it") from None
    return device


def tensor(array: np.ndarray) -> Tensor:
    """Gives an array as a tensor on the CPU: the same memory where it is writable."""
    # torch has no read-only tensors: a received view must be copied before it is lent out.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_device(arrays: Arrays, device: torch.device) -> dict[str, Tensor]:
    """Gives arrays as tensors: without a copy where they are writable and the device is the CPU."""
    if device.type == "cpu":
        return {name: tensor(array) for name, array in arrays.items()}
    return joined_to_device({name: (array,) for name, array in arrays.items()}, device)


def joined_to_device(parts: Mapping[str, Sequence[np.ndarray]], device: torch.device) -> dict[str, Tensor]:
    """Gives each name's arrays, joined along their first axis, as one tensor of new memory."""
    if device.type == "cpu":
        return {name: torch.from_numpy(np.concatenate(own)) for name, own in parts.items()}
    places, buffer = packed(parts, pinned=device.type == "cuda")
    return unpacked(places, buffer.to(device, non_blocking=True))


class Place:
    """Where one array lies in a packed buffer, and what it is."""

    __slots__ = ("dtype", "nbytes", "shape", "start")

    def __init__(self, start: int, like: Sequence[np.ndarray]) -> None:
        self.start = start
        self.dtype = like[0].dtype
        self.shape = (sum(len(part) for part in like), *like[0].shape[1:])
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def write(self, buffer: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        """Joins `parts` [n, ...] into their place in a buffer of bytes: the one copy on the host."""
        own = buffer[self.start : self.start + self.nbytes].view(self.dtype).reshape(self.shape)
        np.concatenate(parts, out=own)

    def read(self, buffer: Tensor) -> Tensor:
        """Gives the view of the array in a buffer of bytes."""
        dtype = torch.from_numpy(np.empty(0, self.dtype)).dtype
        return buffer[self.start : self.start + self.nbytes].view(dtype).view(self.shape)


def packed(parts: Mapping[str, Sequence[np.ndarray]], pinned: bool) -> tuple[dict[str, Place], Tensor]:
    """Gives all arrays in one new buffer of bytes, each name's joined along their first axis, and where each lies."""
    places, end = {}, 0
    for name, own in parts.items():
        places[name] = Place(end, own)
        end += -(-places[name].nbytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    memory = buffer.numpy()
    for name, place in places.items():
        place.write(memory, parts[name])
    return places, buffer


def unpacked(places: Mapping[str, Place], buffer: Tensor) -> dict[str, Tensor]:
    """Gives the views of what `packed` put into a buffer, wherever that is now."""
    return {name: place.read(buffer) for name, place in places.items()}


def to_host(tensors: Mapping[str, Tensor]) -> Arrays:
    """Gives tensors as arrays: without a copy on the CPU, in one copy from another device."""
    if all(x.device.type == "cpu" for x in tensors.values()):
        return {name: x.numpy() for name, x in tensors.items()}
    return split_on_host(tensors)


def split_on_host(tensors: Mapping[str, Tensor]) -> Arrays:
    """Gives tensors as views of one array of bytes, brought to the host in one copy."""
    # The widest first, so that each begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    flat = [tensors[name].reshape(-1).view(torch.uint8) for name in names]
    memory = torch.cat(flat).cpu()
    found = {}
    for name, own in zip(names, torch.split(memory, [x.numel() for x in flat]), strict=True):
        found[name] = own.view(tensors[name].dtype).view(tensors[name].shape).numpy()
    return {name: found[name] for name in tensors}
