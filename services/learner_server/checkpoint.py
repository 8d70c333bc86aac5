"""Checkpoints: safetensors for tensors, JSON for the rest; written whole or not at all, read without pickle.

A checkpoint is a directory, `checkpoints/<updates>/`, with `model.safetensors` and `state.json`. The files `latest` and
`best` beside it hold the name of one. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import ConfigError, HeadraceError, ProtocolError
from common.files import sync, write_whole
from services.learner_server.lock import lives

_TENSOR = "@tensor"


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self._run_dir = run_dir
        self._dir = run_dir / "checkpoints"
        self._keep = keep
        self._dir.mkdir(parents=True, exist_ok=True)
        for unfinished in self._dir.glob(".*[0-9].partial"):
            shutil.rmtree(unfinished)
        for old in self._dir.glob(".*.old"):
            name = self._dir / old.name[1 : -len(".old")]  # a crash came between the renames
            shutil.rmtree(old) if name.exists() else old.rename(name)

    def next_ordinal(self) -> int:
        """Gives this learner life's number, one more than any before it, once that is safely stored."""
        ordinal = lives(self._run_dir) + 1
        write_whole(self._run_dir / "ordinal", str(ordinal))
        return ordinal

    def save(self, state: Mapping[str, Any], updates: int, best: bool) -> None:
        """Writes a checkpoint; a crash leaves the ones before it as they were. HeadraceError where it cannot."""
        name = f"{updates:09d}"
        partial = self._dir / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._save(state, name, partial, best)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)  # what others may need, on a full disk
            text = f"no checkpoint after update {updates}: {error}"
            raise HeadraceError(text, "make room there; the run goes on from the one before") from error

    def _save(self, state: Mapping[str, Any], name: str, partial: Path, best: bool) -> None:
        final, tensors = self._dir / name, dict[str, torch.Tensor]()
        partial.mkdir()
        (partial / "state.json").write_text(json.dumps(_lift(state, "", tensors)))
        save_file(tensors, partial / "model.safetensors")
        for path in (*partial.iterdir(), partial):
            sync(path)
        if final.exists():
            # A learner that went back trains through the same numbers again: the newer life's word stands.
            final.rename(self._dir / f".{name}.old")
        partial.rename(final)
        shutil.rmtree(self._dir / f".{name}.old", ignore_errors=True)
        write_whole(self._dir / "latest", name)
        if best:
            write_whole(self._dir / "best", name)
        self._prune()

    def load_latest(self) -> dict[str, Any] | None:
        """Gives the newest checkpoint's state, or None where there is none."""
        return load_state(find(self._run_dir)) if (self._dir / "latest").exists() else None

    def _prune(self) -> None:
        kept = {(self._dir / pointer).read_text() for pointer in ("latest", "best") if (self._dir / pointer).exists()}
        by_age = sorted((p for p in self._dir.iterdir() if p.name.isdigit()), key=lambda p: p.stat().st_mtime)
        for path in by_age[: -self._keep]:
            if path.name not in kept:
                shutil.rmtree(path)


def find(run_dir: Path, which: str = "latest") -> Path:
    """Gives the directory of a run's checkpoint: `latest`, `best`, or its number; ConfigError if there is none."""
    folder = run_dir / "checkpoints"
    pointer = folder / which
    path = folder / pointer.read_text() if pointer.is_file() else pointer
    if not (path / "state.json").exists():
        names = sorted(p.name for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
        remedy = f"it has {', '.join(names)}" if names else "train on: one comes every learner.checkpoint.interval_s"
        raise ConfigError(f"{run_dir} has no checkpoint {which!r}", remedy)
    return path


def load_state(path: Path) -> dict[str, Any]:
    """Gives the nested state of a checkpoint directory; raises ConfigError where it cannot be read."""
    with reading(path):
        tree: dict[str, Any] = json.loads((path / "state.json").read_text())
        tensors = load_file(path / "model.safetensors")
        return {name: _lower(value, tensors) for name, value in tree.items()}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises ConfigError where what is done with the checkpoint's state fails, since it is none that `save` wrote."""
    try:
        yield
    except (OSError, ValueError, LookupError, AttributeError, TypeError, SafetensorError, ProtocolError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"the checkpoint {path} cannot be read: {said}", "restore it, or name another") from error


def _lift(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Gives `value` with each tensor moved to `tensors` and its name left in its place."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {str(key): _lift(item, f"{path}.{key}" if path else str(key), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_lift(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    return value


def _lower(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value[_TENSOR]] if _TENSOR in value else {k: _lower(item, tensors) for k, item in value.items()}
    if isinstance(value, list):
        return [_lower(item, tensors) for item in value]
    return value
