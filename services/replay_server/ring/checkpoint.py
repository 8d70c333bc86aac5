"""A table's checkpoint on disk: one .npz file, written whole or not at all, without pickle.

Knows nothing of what a table's state means: a tree of arrays and of what JSON holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from common.errors import ConfigError
from common.files import sync
from common.types import Arrays

_ARRAY = "@array"


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` beside `path`, for `commit`; when this returns, the arrays may change again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: Arrays = {}
    tree = np.frombuffer(json.dumps(_lift(state, arrays)).encode(), np.uint8)
    with _gone_if_it_fails(_partial(path)), _partial(path).open("wb") as file:
        np.savez(file, allow_pickle=False, tree=tree, **arrays)


def commit(path: Path) -> None:
    """Puts what `write` wrote safely in the place of the checkpoint before it."""
    with _gone_if_it_fails(_partial(path)):
        for written in (_partial(path), path.parent):
            sync(written)
        _partial(path).replace(path)


@contextmanager
def read(path: Path) -> Iterator[Mapping[str, Any] | None]:
    """Gives the state that was last committed, or None; arrays that lie in mappings are read as they are looked up.

    Whoever copies one after another holds no more than one of them besides the copies. Raises ConfigError where what
    is done with the state fails, since it is none that `write` wrote.
    """
    if not path.exists():
        yield None
        return
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield _lower(json.loads(arrays["tree"].tobytes()), arrays)
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
        remedy = "restore it, or remove it: the table then starts empty"
        raise ConfigError(f"the checkpoint {path} cannot be read: {error}", remedy) from error


@contextmanager
def _gone_if_it_fails(partial: Path) -> Iterator[None]:
    """Leaves nothing on a disk that may be full."""
    try:
        yield
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


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


class _Saved(Mapping[str, Any]):
    """A mapping with arrays in an open file."""

    def __init__(self, tree: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._tree, self._arrays = tree, arrays

    def __getitem__(self, key: str) -> Any:
        return _lower(self._tree[key], self._arrays)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)


def _lower(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            return arrays[value[_ARRAY]]
        if any(isinstance(item, dict) and _ARRAY in item for item in value.values()):
            return _Saved(value, arrays)
        return {key: _lower(item, arrays) for key, item in value.items()}
    return [_lower(item, arrays) for item in value] if isinstance(value, list) else value
