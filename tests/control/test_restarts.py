"""When a crashed process starts again."""

from __future__ import annotations

import random

import pytest

from services.control.engines.restarts import Restarts


def test_delays_double_within_a_quarter_of_jitter_and_the_fifth_crash_gives_up() -> None:
    restarts = Restarts(random.Random(1))
    delays = [restarts.crashed(float(second)) for second in range(5)]
    assert delays[0] == 0.2
    assert delays[1:4] == [pytest.approx(0.4, rel=0.25), pytest.approx(0.8, rel=0.25), pytest.approx(1.6, rel=0.25)]
    assert delays[4] is None
    assert restarts.count == 4


def test_crashes_more_than_a_minute_apart_go_on_for_ever() -> None:
    restarts = Restarts(random.Random(1))
    assert [restarts.crashed(61.0 * n) for n in range(20)] == [0.2] * 20
    assert restarts.count == 20
