"""Received unrolls side by side: the one host copy between the wire and the update. Knows no torch and no algorithm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import ProtocolError
from common.types import Arrays

_PER_ENVIRONMENT = ("state.", "reward_before")
_NOT_TRAINED_ON = ("episode_returns", "episode_lengths", "versions", "final_index")


def split(arrays: Arrays, unrolls: int) -> list[Arrays]:
    """Gives the arrays of each unroll of a FIFO Batch, whose names are `<i>/<name>`."""
    parts: list[Arrays] = [{} for _ in range(unrolls)]
    for key, array in arrays.items():
        number, slash, name = key.partition("/")
        if slash:
            parts[int(number)][name] = array
    return parts


def stage(parts: Sequence[Arrays]) -> Arrays:
    """Gives one batch [T, ΣB, ...] of unrolls [T, B, ...], in fresh writable arrays; `versions` becomes [T, ΣB].

    Raises ProtocolError if the unrolls differ in length or in names.
    """
    lengths = {len(part["reward"]) for part in parts}
    names = {frozenset(name for name in part if not name.startswith("final")) for part in parts}
    if len(lengths) != 1 or len(names) != 1:
        raise ProtocolError(
            f"unrolls of {sorted(lengths)} steps in one batch", "set one rollout.unroll for all env-servers"
        )
    batch: Arrays = {}
    for name in sorted(names.pop() - set(_NOT_TRAINED_ON)):
        axis = 0 if name.startswith(_PER_ENVIRONMENT) else 1
        batch[name] = np.concatenate([part[name] for part in parts], axis=axis)
    widths = [part["reward"].shape[1] for part in parts]
    batch["versions"] = np.repeat(np.stack([part["versions"] for part in parts], axis=1), widths, axis=1)
    _stage_finals(batch, parts, widths)
    return batch


def _stage_finals(batch: Arrays, parts: Sequence[Arrays], widths: Sequence[int]) -> None:
    """Moves each unroll's true last observations to their columns in the batch."""
    total, offset = sum(widths), 0
    indices: list[np.ndarray] = []
    for part, width in zip(parts, widths, strict=True):
        if "final_index" in part:
            t, b = np.divmod(part["final_index"], width)
            indices.append((t * total + b + offset).astype(np.int32))
        offset += width
    if indices:
        batch["final_index"] = np.concatenate(indices)
        having = [part for part in parts if "final_index" in part]
        for name in (name for name in having[0] if name.startswith("final.")):
            batch[name] = np.concatenate([part[name] for part in having])
