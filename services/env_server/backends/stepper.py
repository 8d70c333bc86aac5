"""Where a group's step runs, on the event loop's thread or beside it, and what it takes; each under the watchdog.

Knows no message and no unroll.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from common.metrics import EnvMetrics
from common.types import Arrays
from services.env_server.backends import Backend, Finals
from services.env_server.backends.watchdog import Watchdog

# A step that takes longer runs on a thread, so that the other groups' messages are answered meanwhile.
SLOW_STEP_S = 2e-3
# Not one that keeps the interpreter's lock and computes: nothing else would run, or some milliseconds late. Longer ones
# do, since they would hold up a stop.
LONG_STEP_S = 0.1
# The share of a core that tells computing, on a machine with other work, from waiting for something.
COMPUTING_SHARE = 0.2


class Stepper:
    """Steps the group `name`; `groups` of them share the process."""

    def __init__(self, backend: Backend, name: str, groups: int, watchdog: Watchdog, metrics: EnvMetrics) -> None:
        self._backend = backend
        self._name = name
        self._groups = groups
        self._watchdog = watchdog
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="simulator")
        self._step_s = self._cpu_s = 0.0

    def reset(self, seed: int, observation: Arrays) -> None:
        """Starts every environment anew, as the backend's own does."""
        with self._watchdog.step(self._name):
            self._backend.reset(seed, observation)

    async def step(self, action: np.ndarray, targets: tuple[Any, ...]) -> Finals:
        """Steps every environment once, into what the backend's `step` takes beside actions."""
        threaded, began = self.on_thread, time.perf_counter()
        if threaded:
            finals = await asyncio.get_running_loop().run_in_executor(self._pool, self._step, action, targets)
        else:
            finals = self._step(action, targets)
        seconds = time.perf_counter() - began
        self._step_s += 0.1 * (seconds - self._step_s)
        self._metrics.step_seconds.observe(seconds)
        self._metrics.work_seconds.inc(seconds / self._groups if threaded else seconds)
        return finals

    @property
    def on_thread(self) -> bool:
        """Whether steps take so long that the next one runs on a thread of its own."""
        computes = self._backend.holds_gil and self._cpu_s > COMPUTING_SHARE * self._step_s
        return self._step_s > (LONG_STEP_S if computes else SLOW_STEP_S)

    def _step(self, action: np.ndarray, targets: tuple[Any, ...]) -> Finals:
        began = time.thread_time()
        with self._watchdog.step(self._name):
            finals = self._backend.step(action, *targets)
        self._cpu_s += 0.1 * (time.thread_time() - began - self._cpu_s)
        return finals

    def close(self) -> None:
        """Frees the simulators once a step that is under way has come back; does not wait for it."""
        self._pool.submit(self._backend.close)
        self._pool.shutdown(wait=False)
