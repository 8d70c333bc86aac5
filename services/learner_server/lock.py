"""Whose a run's directory is. Without torch: control asks before it starts anything."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

from common.errors import ConfigError


def claim(run_dir: Path) -> TextIO:
    """Makes a run's directory this process's for as long as the file given is open; raises ConfigError if it is not."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / "lock").open("w")
    except OSError as error:
        text = f"the run directory {run_dir} cannot be written: {error.strerror}"
        raise ConfigError(text, "set --run-dir to a directory that you may write in") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"another learner writes to {run_dir}", "stop it, or choose another run.name") from None
    return lock
