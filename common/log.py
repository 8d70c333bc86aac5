"""Log lines of a service: time, level, process name, message; the same on a terminal and in the run's log files."""

from __future__ import annotations

import logging


def set_up(name: str) -> None:
    """Sends the log of this process to stderr, each line led by `name`."""
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname).1s {name}: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
