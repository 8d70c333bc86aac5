"""Steps of which a simulator gave what is no number, and an unroll that leaves them out of every item.

One of them in a ring would cost each batch that it is drawn into. Knows no storage.
"""

from __future__ import annotations

import numpy as np

from common.types import Arrays

_FROM_SIMULATOR = ("observation.", "final.", "reward", "state.")  # the last for what a network made of them


def without_spoilt(arrays: Arrays) -> tuple[Arrays, np.ndarray]:
    """Gives an unroll with its spoilt steps as steps that only reset, between two episodes, and which they are, [T, B]
    bool: those whose reward, or what was seen before or after it, is not finite. `arrays` itself where none is."""
    spoilt = np.zeros(arrays["reward"].shape, np.bool_)
    given = {name: x for name, x in arrays.items() if name.startswith(_FROM_SIMULATOR) and x.dtype.kind == "f"}
    bad = {name: x for name, x in given.items() if not np.isfinite(x).all()}
    if not bad:
        return arrays, spoilt
    for name, array in bad.items():
        _mark(name, ~np.isfinite(array), arrays, spoilt)
    mended = arrays | {name: np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) for name, x in bad.items()}
    first, valid, terminated = arrays["first"].copy(), arrays["valid"] & ~spoilt, arrays["terminated"] & ~spoilt
    truncated = arrays["truncated"] & ~spoilt
    truncated[:-1] |= spoilt[1:] & valid[:-1] & ~terminated[:-1]
    first[1:] |= spoilt
    ends = {"first": first, "valid": valid, "terminated": terminated, "truncated": truncated}
    return mended | ends | {"reward": np.where(spoilt, np.float32(0), mended["reward"])}, spoilt


def _mark(name: str, wrong: np.ndarray, arrays: Arrays, spoilt: np.ndarray) -> None:
    steps, envs = spoilt.shape
    if name == "reward":
        spoilt |= wrong
    elif name.startswith("final."):
        spoilt.reshape(-1)[arrays["final_index"][wrong.reshape(len(wrong), -1).any(axis=1)]] = True
    elif name.startswith("state."):
        spoilt |= wrong.reshape(envs, -1).any(axis=1)
    elif name.startswith("observation."):
        frames: np.ndarray = np.logical_or.reduce(wrong.reshape(len(wrong), envs, -1), axis=2)
        seen = np.logical_or.reduce([frames[k : k + steps + 1] for k in range(len(frames) - steps)])
        spoilt |= seen[:-1] | (seen[1:] & ~arrays["first"][1:])
