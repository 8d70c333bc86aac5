"""The directory of a run, as one start of its job finds it and leaves it: what comes to nothing changes nothing.

Owns config.yaml and the end of an old result.json; the other files are the learner's.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from common.config import Config
from common.errors import ConfigError
from common.files import write_whole
from services.control.targets import writing
from services.learner_server.lock import claim

_OWN = ("config.yaml", "result.json")


class RunDir:
    """A run's directory while its job is started with `config`; `made` says that it is this start's own.

    As a context it has the job's config.yaml and no result.json. Unless the job has `begun`, or came to a result, the
    files are put back as they were at the end, and a directory that was made for a refused start is taken away.
    """

    def __init__(self, path: Path, config: Config, made: bool = False) -> None:
        self.path = path
        self.begun = False
        self._config = config
        self._made = made
        self._before: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            self._prepare()
        except ConfigError:
            if self._made:
                shutil.rmtree(self.path, ignore_errors=True)
            raise
        return self

    def _prepare(self) -> None:
        if (self.path / "lock").exists():
            # Before its files are touched: what is put back later would be older than what its job wrote meanwhile.
            claim(self.path).close()
        with _writing(str(self.path)):
            files = [self.path / name for name in _OWN]
            self._before = {file.name: file.read_text() for file in files if file.exists()}
            write_whole(self.path / "config.yaml", self._config.to_yaml())
            (self.path / "result.json").unlink(missing_ok=True)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.begun or (error is None and (self.path / "result.json").exists()):
            return
        if self._made:
            # What crashed has left a log to read; what was refused has said all there is to say.
            if isinstance(error, ConfigError) and not _trained(self.path):
                shutil.rmtree(self.path, ignore_errors=True)
            return
        for name in _OWN:
            if name in self._before:
                write_whole(self.path / name, self._before[name])
            else:
                (self.path / name).unlink(missing_ok=True)


def new_run(config: Config) -> RunDir:
    """Makes the directory of a new run; refuses a name that is taken, or a place where it cannot be made."""
    with _writing(config.run.dir):
        return _named(config) if config.run.name else RunDir(_free_dir(config), config, made=True)


def _named(config: Config) -> RunDir:
    path = Path(config.run.dir) / config.run.name
    if _trained(path):
        raise ConfigError(
            f"run.name={config.run.name!r}: {path} exists already",
            f"resume it with `headrace train --resume {path}` or choose another run.name",
        )
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    return RunDir(path, config, made)


def _trained(path: Path) -> bool:
    """Whether a start has left anything there that a later one would spoil."""
    return (path / "checkpoints" / "latest").exists() or (path / "progress.csv").exists()


def _free_dir(config: Config) -> Path:
    base = Path(config.run.dir)
    name = f"{_word(config.algorithm)}-{_tail(config.env.id)}-{time.strftime('%m%d-%H%M%S')}"
    for attempt in range(1, 1000):
        path = base / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise ConfigError(f"run.dir={str(base)!r} has no free name like {name}", "set run.name")


def _writing(where: str) -> AbstractContextManager[None]:
    return writing(f"run.dir={where!r} cannot take the run", "set run.dir to a directory with room where you may write")


def _word(section: Mapping[str, Any]) -> str:
    return _tail(str(section.get("name", "run")))


def _tail(name: str) -> str:
    return name.rpartition(":")[2].rpartition("/")[2]
