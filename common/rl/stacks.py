"""Frame stacks of a time-major batch, built from the single frames that it came with. Knows no torch."""

from __future__ import annotations

import numpy as np

from common.types import Arrays, EnvSpec


def stack(batch: Arrays, env: EnvSpec) -> None:
    """Builds the stacks of time-major observations from their single frames, in place."""
    for spec in env.observations:
        name = f"observation.{spec.name}"
        if spec.stack > 1 and "first" in batch:
            index = np.arange(batch["first"].size).reshape(batch["first"].shape)
            batch[name] = stacked(batch[name], batch["first"], index, spec.stack)


def stacked(frames: np.ndarray, first: np.ndarray, index: np.ndarray, k: int) -> np.ndarray:
    """Gives the stacks [..., k, *frame] that were seen at `index` (t * B + b, any shape) of an unroll.

    Oldest frame first; zeros stand for the frames before an episode's first.
    `frames` [T+k, B, *frame] are its single frames, the first k of them the stack at t = 0; `first` is [T+1, B] bool.
    """
    t, b = np.divmod(index, first.shape[1])
    # Row 0's own stack came whole: no episode opens within it.
    opened = np.maximum.accumulate(np.where(first, np.arange(len(first))[:, None], -k), axis=0)
    back = np.arange(k - 1, -1, -1)
    stacks: np.ndarray = frames[t[..., None] + k - 1 - back, b[..., None]]
    stacks[back > (t - opened[t, b])[..., None]] = 0
    return stacks
