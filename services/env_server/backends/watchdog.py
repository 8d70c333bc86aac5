"""Ends the process when a simulator's step does not come back: nothing else can stop native code that hangs.

Who started the process starts it again; its peers wait and go on. Knows no simulator and no loop.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("headrace.env")

EXIT_CODE = 70
# Deadlines after which a step that keeps the interpreter's lock is ended, for nothing can then tell it from a process
# that was stopped.
LOCKED = 2


class Watchdog:
    """Watches each `step` from a thread; `deadline_s` is how long one may take, while this process is not stopped."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._running: dict[int, tuple[str, float]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Runs while `name` steps its simulators."""
        key = threading.get_ident()
        self._running[key] = (name, time.monotonic())
        try:
            yield
        finally:
            del self._running[key]

    def close(self) -> None:
        """Ends the watch, unless a step is under way: the end of the process waits for that, but not for ever."""
        if self._running:
            return
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        went_on = now = time.monotonic()
        while not self._closed.is_set():
            # A step that keeps the interpreter's lock stops this thread too: then the timer, which needs no lock, runs
            # out and ends the process.
            faulthandler.dump_traceback_later(LOCKED * self._deadline_s, exit=True)
            self._closed.wait(self._deadline_s / 4)
            before, now = now, time.monotonic()
            if now - before > self._deadline_s / 2:
                went_on = now  # the process was stopped, and its steps with it
            for name, since in list(self._running.values()):
                took = now - max(since, went_on)
                if took > self._deadline_s:
                    faulthandler.dump_traceback()
                    log.critical("a step of %s has not come back for %.0f s (env.step_deadline_s)", name, took)
                    os._exit(EXIT_CODE)
