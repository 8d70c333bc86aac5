"""What was received, side by side in one batch: the one host copy between the wire and the update.

Knows no torch and no algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import ProtocolError
from common.messages import Batch
from common.types import Arrays

_PER_ENVIRONMENT = ("state.", "reward_before")
# What tells of a Batch, and is no part of what is trained on.
_ABOUT = ("keys", "probabilities", "counters", "origins", "episode_origins", "episode_returns", "episode_lengths")
_SEPARATE = ("final_index", "versions", *_ABOUT)


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
    names = {frozenset(n for n in part if not n.startswith("final.") and n not in _SEPARATE) for part in parts}
    if len(lengths) != 1 or len(names) != 1:
        raise ProtocolError(f"unrolls of {sorted(lengths)} steps in one batch", "set one rollout.unroll for all")
    batch: Arrays = {}
    for name in sorted(names.pop()):
        axis = 0 if name.startswith(_PER_ENVIRONMENT) else 1
        batch[name] = np.concatenate([part[name] for part in parts], axis=axis)
    if all("versions" in part for part in parts):
        # An unroll that just came has one version per step; stored columns come from different unrolls.
        each = [np.broadcast_to(p["versions"].reshape(len(p["reward"]), -1), p["reward"].shape) for p in parts]
        batch["versions"] = np.concatenate(each, axis=1)
    _stage_finals(batch, parts, [part["reward"].shape[1] for part in parts])
    return batch


def mix(online: Sequence[Arrays], replayed: Sequence[Arrays]) -> Arrays:
    """Gives one batch of unrolls that just came and of stored ones; `online` [ΣB] bool says which columns are which."""
    batch = stage([*online, *replayed])
    columns = sum(part["reward"].shape[1] for part in online)
    return batch | {"online": np.arange(batch["reward"].shape[1]) < columns}


def join(parts: Sequence[tuple[Batch, float]]) -> Arrays:
    """Gives what several shards of a ring drew as one batch, of transitions [n, ...] or sequences [T, n, ...].

    `relative` [n] float32 is N·P: 1 where each of the N items is as likely as any other. Within a shard an item has
    probability p, and in the whole p times the shard's share of the draw: with each Batch comes N times that.
    """
    named = [batch.arrays for batch, _ in parts]
    if "mask" in named[0]:
        joined = stage([{("valid" if name == "mask" else name): x for name, x in part.items()} for part in named])
    else:
        joined = {n: np.concatenate([part[n] for part in named]) for n in named[0] if n not in _ABOUT}
    relative = [batch.arrays["probabilities"] * odds for batch, odds in parts]
    return joined | {"relative": np.concatenate(relative).astype(np.float32)}


def in_turn(drawn: Arrays, batches: int) -> list[Arrays]:
    """Gives what was drawn for several batches as these, each of every `batches`-th item: strata are shared alike."""

    def part(own: slice) -> Arrays:
        along = {n: drawn["reward"].ndim == 2 and not n.startswith((*_PER_ENVIRONMENT, "relative")) for n in drawn}
        return {n: np.ascontiguousarray(x[:, own] if along[n] else x[own]) for n, x in drawn.items()}

    # A shard that is away may leave fewer items than batches.
    return [part(slice(first, None, batches)) for first in range(min(batches, drawn["reward"].shape[-1]))]


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
