"""Whose a run's directory is, and has been. Without torch: control asks before it starts anything."""

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


def lives(run_dir: Path) -> int:
    """Gives how many lives of its learner a run has had; raises ConfigError where its file `ordinal` does not say."""
    path = run_dir / "ordinal"
    text = path.read_text(errors="replace") if path.exists() else "0"
    if not text.strip().isdecimal():
        raise ConfigError(f"{path} holds {text!r:.60}, no count of lives", "write a number above any before: 1000")
    return int(text)
