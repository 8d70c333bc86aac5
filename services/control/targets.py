"""Files that a command is told to write: asked for before the work, not after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError


def check_target(option: str, path: Path) -> None:
    """Raises ConfigError, naming `option`, where `path` is no file that can be written."""
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a directory", "name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no directory {path.parent}", "make it, or name another file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option} {path} cannot be written", "name a file where you may write")


@contextmanager
def writing(what: str, remedy: str) -> Iterator[None]:
    """Makes a ConfigError that begins with `what` of anything that the file system refuses."""
    try:
        yield
    except OSError as error:
        # A write that fails does not know its file's name.
        where = f"{error.filename}: " if error.filename else ""
        raise ConfigError(f"{what}: {where}{error.strerror}", remedy) from None
