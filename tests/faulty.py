"""A CartPole that goes wrong once per file system: at a step it hangs, or takes its process with it. And a subject."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium

from common.config import Config

# In a C loop that neither gives up the interpreter's lock nor looks for signals; ends after minutes.
_LONG = range(10**11)


class Faulty(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Does `fault` at step `at`, unless `marker` exists, which it makes first; each step takes `step_s`."""

    def __init__(self, fault: str, marker: str, at: int, step_s: float) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._fault = fault
        self._marker = Path(marker)
        self._at = at
        self._step_s = step_s
        self._steps = 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        time.sleep(self._step_s)
        if self._steps == self._at and self._first():
            if self._fault == "sleeps":
                time.sleep(600)
            elif self._fault == "spins":
                sum(_LONG)
            else:
                ctypes.string_at(0)
        return super().step(action)

    def _first(self) -> bool:
        """Says whether nobody has gone wrong before; of several processes at once it is true for one."""
        try:
            self._marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def make(fault: str, marker: str, at: int = 500, step_s: float = 0.0) -> gymnasium.Env[Any, Any]:
    return Faulty(fault, marker, at, step_s)


def dying_subject(config: Config) -> Callable[[], int]:
    """A subject of a benchmark whose process ends without a word."""
    os._exit(9)


def telling_subject(config: Config) -> Callable[[], int]:
    """A subject of a benchmark that says on standard output that it runs."""
    print("runs", flush=True)
    return lambda: 1
