"""A table's checkpoint on disk: one .npz file, written whole or not at all, without pickle.

Knows nothing of what a table's state means: a tree of arrays and of what JSON holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.types import Arrays

_ARRAY = "@array"


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` beside `path`, for `commit`; when this returns, the arrays may change again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: Arrays = {}
    tree = np.frombuffer(json.dumps(_lift(state, arrays)).encode(), np.uint8)
    with _partial(path).open("wb") as file:
        np.savez(file, allow_pickle=False, tree=tree, **arrays)


def commit(path: Path) -> None:
    """Puts what `write` wrote safely in the place of the checkpoint before it."""
    for written in (_partial(path), path.parent):
        descriptor = os.open(written, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _partial(path).replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Gives the state that was last committed, or None."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        state = _lower(json.loads(arrays["tree"].tobytes()), arrays)
    assert isinstance(state, dict)
    return state


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def _lift(value: Any, arrays: Arrays) -> Any:
    """Gives `value` with each array moved to `arrays` and its name left in its place."""
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, Mapping):
        return {str(key): _lift(item, arrays) for key, item in value.items()}
    return [_lift(item, arrays) for item in value] if isinstance(value, list | tuple) else value


def _lower(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        return arrays[value[_ARRAY]] if _ARRAY in value else {k: _lower(item, arrays) for k, item in value.items()}
    return [_lower(item, arrays) for item in value] if isinstance(value, list) else value
