"""What an engine says of its processes while they run: the one thing that engines, monitor and display share."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["starting", "running", "stopping", "restarting", "ended"]


@dataclass(slots=True)
class ProcessState:
    """One service as its engine sees it; `life` counts its starts, so that readings of an earlier one are known."""

    name: str
    role: str
    phase: Phase = "starting"
    pid: int = 0
    restarts: int = 0
    life: int = 0


@dataclass(slots=True)
class Board:
    """The job's processes by name, and what has been said aloud and not yet been shown."""

    processes: dict[str, ProcessState] = field(default_factory=dict)
    notices: deque[str] = field(default_factory=deque)

    def say(self, text: str) -> None:
        self.notices.append(text)
