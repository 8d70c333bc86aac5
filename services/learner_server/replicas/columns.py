"""Which part of a staged batch is a rank's: every size-th column, so that all kinds of columns are shared alike.

Knows no torch and no process.
"""

from __future__ import annotations

import numpy as np

from common.types import Arrays

_PER_COLUMN = ("state.", "reward_before", "online", "relative")


def columns(batch: Arrays, rank: int, size: int) -> Arrays:
    """Gives columns rank, rank + size, … of a batch [T, B, ...], in fresh arrays; what is beyond a multiple is dropped.

    Stored columns stand last in a batch: it is those that are dropped.
    """
    width = batch["reward"].shape[1]
    equal = width - width % size
    chosen = slice(rank, equal, size)
    part: Arrays = {}
    for name, x in batch.items():
        if name != "final_index" and not name.startswith("final."):
            part[name] = np.ascontiguousarray(x[chosen] if name.startswith(_PER_COLUMN) else x[:, chosen])
    if "final_index" in batch:
        t, b = np.divmod(batch["final_index"], width)
        mine = (b < equal) & (b % size == rank)
        part["final_index"] = (t * (equal // size) + b // size)[mine].astype(np.int32)
        part |= {name: x[mine] for name, x in batch.items() if name.startswith("final.")}
    return part
