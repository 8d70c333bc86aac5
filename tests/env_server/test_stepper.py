"""Which steps run on the event loop's thread, and which beside it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from common.config import EnvConfig
from common.metrics import EnvMetrics
from services.env_server.backends import make_backend, stepper
from services.env_server.backends.stepper import Stepper
from services.env_server.backends.watchdog import Watchdog


@dataclass
class Clock:
    """What a simulator's steps take, by the clock and of a core. A real clock would show the machine's other work."""

    seconds: float = 0.0
    cpu_s: float = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clocks = SimpleNamespace(perf_counter=lambda: clock.seconds, thread_time=lambda: clock.cpu_s)
    monkeypatch.setattr(stepper, "time", clocks)
    return clock


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(60.0)
    yield watchdog
    watchdog.close()


async def second_step(clock: Clock, watchdog: Watchdog, step_s: float, cpu_s: float) -> tuple[bool, float]:
    """Says of a simulator's second step whether the loop went on meanwhile, and what share of its time was counted.

    What a step is like is known from the first.
    """
    backend = make_backend(EnvConfig(id="headrace/Null-v0", kwargs={"sleep": False}), 1)
    untimed = backend.step

    def step(*arguments: Any) -> Any:
        clock.seconds += step_s
        clock.cpu_s += cpu_s
        return untimed(*arguments)

    backend.step = step  # type: ignore[method-assign]
    registry = CollectorRegistry()
    group = Stepper(backend, "env-0/0", 2, watchdog, EnvMetrics(registry))

    def counted() -> np.ndarray:
        names = ("headrace_env_work_seconds_total", "headrace_env_step_seconds_sum")
        return np.array([registry.get_sample_value(name) for name in names])

    observation = backend.spec.observations[0]
    rows = {"obs": np.zeros((1, *observation.shape), observation.dtype)}
    targets = (rows, np.zeros(1, np.float32), *(np.zeros(1, np.bool_) for _ in range(3)))
    group.reset(0, rows)
    await group.step(np.zeros(1, np.int64), targets)
    before = counted()
    second = asyncio.create_task(group.step(np.zeros(1, np.int64), targets))
    await asyncio.sleep(0)
    beside = not second.done()
    await second
    group.close()
    worked, took = counted() - before
    return beside, worked / took


async def test_a_fast_step_runs_at_once(clock: Clock, watchdog: Watchdog) -> None:
    assert await second_step(clock, watchdog, 0.019, 0.0) == (False, pytest.approx(1.0))


@pytest.mark.parametrize("cpu_s", [0.0, 0.03])
async def test_a_step_that_waits_leaves_the_loop_to_others(clock: Clock, watchdog: Watchdog, cpu_s: float) -> None:
    # Another group has the other half.
    assert await second_step(clock, watchdog, 0.2, cpu_s) == (True, pytest.approx(0.5))


async def test_a_step_that_keeps_the_interpreter_runs_at_once(clock: Clock, watchdog: Watchdog) -> None:
    assert await second_step(clock, watchdog, 0.2, 0.05) == (False, pytest.approx(1.0))


async def test_one_that_takes_very_long_does_not(clock: Clock, watchdog: Watchdog) -> None:
    assert (await second_step(clock, watchdog, 1.5, 1.5))[0]
