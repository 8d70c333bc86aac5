"""Which steps run on the event loop's thread, and which beside it."""

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from common.config import EnvConfig
from common.metrics import EnvMetrics
from services.env_server.backends import make_backend
from services.env_server.backends.stepper import COMPUTING_SHARE, Stepper
from services.env_server.backends.watchdog import Watchdog


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(60.0)
    yield watchdog
    watchdog.close()


async def runs_beside(watchdog: Watchdog, step_s: float, sleep: bool = True) -> tuple[bool, float]:
    """Says of a simulator's second step whether the loop went on meanwhile, and what share of its time was counted.

    What a step is like is known from the first. One that is to compute is tried again where the machine's other work
    left it too little of a core.
    """
    for _ in range(50):
        cpu, began = time.process_time(), time.perf_counter()
        found = await second_step(watchdog, step_s, sleep)
        if sleep or time.process_time() - cpu > 2 * COMPUTING_SHARE * (time.perf_counter() - began):
            return found
    raise AssertionError("other work keeps this process from computing")


async def second_step(watchdog: Watchdog, step_s: float, sleep: bool) -> tuple[bool, float]:
    backend = make_backend(EnvConfig(id="headrace/Null-v0", kwargs={"step_s": step_s, "sleep": sleep}), 1)
    registry = CollectorRegistry()
    stepper = Stepper(backend, "env-0/0", 2, watchdog, EnvMetrics(registry))

    def seconds() -> np.ndarray:
        names = ("headrace_env_work_seconds_total", "headrace_env_step_seconds_sum")
        return np.array([registry.get_sample_value(name) for name in names])

    observation = backend.spec.observations[0]
    rows = {"obs": np.zeros((1, *observation.shape), observation.dtype)}
    targets = (rows, np.zeros(1, np.float32), *(np.zeros(1, np.bool_) for _ in range(3)))
    stepper.reset(0, rows)
    await stepper.step(np.zeros(1, np.int64), targets)
    before = seconds()
    step = asyncio.create_task(stepper.step(np.zeros(1, np.int64), targets))
    await asyncio.sleep(0)
    beside = not step.done()
    await step
    stepper.close()
    worked, took = seconds() - before
    return beside, worked / took


async def test_a_fast_step_runs_at_once(watchdog: Watchdog) -> None:
    assert not (await runs_beside(watchdog, 0.0))[0]


async def test_a_step_that_waits_leaves_the_loop_to_others(watchdog: Watchdog) -> None:
    beside, counted = await runs_beside(watchdog, 0.2)
    assert beside
    assert counted == pytest.approx(0.5)  # another group has the other half


async def test_a_step_that_keeps_the_interpreter_runs_at_once(watchdog: Watchdog) -> None:
    beside, counted = await runs_beside(watchdog, 0.2, sleep=False)
    assert not beside
    assert counted == pytest.approx(1.0)


async def test_one_that_takes_very_long_does_not(watchdog: Watchdog) -> None:
    assert (await runs_beside(watchdog, 1.5, sleep=False))[0]
