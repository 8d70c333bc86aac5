"""Frame stacks built from single frames; numpy only. Knows no wire, no table and no network.

A stack holds the last k frames, oldest first. At an episode's start zeros stand for the frames before its first.
"""

from __future__ import annotations

import numpy as np


def stacked(frames: np.ndarray, first: np.ndarray, index: np.ndarray, k: int) -> np.ndarray:
    """Gives the stacks [..., k, *frame] that were seen at `index` (t * B + b, any shape) of an unroll.

    `frames` [T+k, B, *frame] are its single frames, the first k of them the stack at t = 0; `first` is [T+1, B] bool.
    """
    t, b = np.divmod(index, first.shape[1])
    # Row 0's own stack came whole: no episode opens within it.
    opened = np.maximum.accumulate(np.where(first, np.arange(len(first))[:, None], -k), axis=0)
    back = np.arange(k - 1, -1, -1)
    stacks: np.ndarray = frames[t[..., None] + k - 1 - back, b[..., None]]
    stacks[back > (t - opened[t, b])[..., None]] = 0
    return stacks
