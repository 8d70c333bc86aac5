"""When a crashed process starts again."""

from __future__ import annotations

import random

import pytest

from services.control.engines.restarts import Restarts


@pytest.mark.parametrize("lived_s", [1.0, 20.0])
def test_delays_double_within_a_quarter_of_jitter_and_the_fifth_short_life_in_a_row_gives_up(lived_s: float) -> None:
    restarts = Restarts(random.Random(1))
    delays = [restarts.crashed(lived_s) for _ in range(5)]
    assert delays[0] == 0.2
    assert delays[1:4] == [pytest.approx(0.4, rel=0.25), pytest.approx(0.8, rel=0.25), pytest.approx(1.6, rel=0.25)]
    assert delays[4] is None
    assert restarts.count == 4


def test_crashes_after_more_than_a_minute_go_on_for_ever() -> None:
    restarts = Restarts(random.Random(1))
    assert [restarts.crashed(61.0) for _ in range(20)] == [0.2] * 20
    assert restarts.count == 20


def test_a_long_life_is_the_first_of_a_new_row() -> None:
    restarts = Restarts(random.Random(1))
    assert [restarts.crashed(lived_s) is None for lived_s in (1.0, 1.0, 1.0, 1.0)] == [False] * 4
    assert restarts.crashed(61.0) == 0.2
    assert [restarts.crashed(lived_s) is None for lived_s in (1.0, 1.0, 1.0, 1.0)] == [False] * 3 + [True]
