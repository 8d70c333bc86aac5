import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from services.replay_server.ring.rate_limiter import RateLimiter


def make(min_size: int, ratio: float, buffer: float, largest_insert: int = 1, largest_sample: int = 1) -> RateLimiter:
    return RateLimiter("ring", min_size, ratio, buffer, largest_insert=largest_insert, largest_sample=largest_sample)


def refused(min_size: int, ratio: float, buffer: float, largest_insert: int, largest_sample: int) -> bool:
    try:
        make(min_size, ratio, buffer, largest_insert, largest_sample)
    except ConfigError:
        return True
    return False


def test_without_coupling_only_min_size_holds_back_draws() -> None:
    limiter = make(10, 0.0, 0.0)
    limiter.inserted(9)
    assert not limiter.may_sample(1)
    limiter.inserted(1)
    limiter.sampled(10**9)
    assert limiter.may_sample(10**9)
    assert limiter.may_insert(10**9)
    assert (limiter.inserts, limiter.samples) == (10, 10**9)


def test_coupling_holds_both_sides_within_the_error_buffer() -> None:
    limiter = make(4, 2.0, 4.0, largest_insert=2, largest_sample=4)
    limiter.inserted(4)
    assert limiter.may_sample(4)
    assert not limiter.may_sample(5)
    assert limiter.may_insert(2)
    assert not limiter.may_insert(3)
    limiter.sampled(4)
    assert not limiter.may_sample(1)
    assert limiter.may_insert(4)
    limiter.inserted(4)
    assert not limiter.may_insert(1)
    assert limiter.may_sample(8)


def test_the_insert_that_crosses_min_size_is_allowed_whole_and_draws_then_catch_up() -> None:
    limiter = make(4, 1.0, 8.0, largest_insert=15, largest_sample=1)
    limiter.inserted(3)
    assert limiter.may_insert(15)
    limiter.inserted(15)
    assert not limiter.may_insert(1)
    limiter.sampled(7)
    assert limiter.may_insert(1)


def test_a_tenth_is_counted_exactly() -> None:
    limiter = make(1, 0.1, 1.0, largest_insert=1, largest_sample=1)
    limiter.inserted(1)
    for _ in range(1_000):
        limiter.inserted(10)
        limiter.sampled(1)
    assert limiter.may_insert(10)
    assert not limiter.may_insert(11)
    assert limiter.may_sample(1)
    assert not limiter.may_sample(2)


def test_a_buffer_that_would_deadlock_is_refused_with_its_key_value_and_the_smallest_that_works() -> None:
    with pytest.raises(ConfigError) as caught:
        make(1000, 0.5, 100.0, largest_insert=512, largest_sample=256)
    message = str(caught.value)
    assert "replay.tables.ring.error_buffer=100 would deadlock as soon as" in message
    assert "an insert of 512" in message
    assert "a draw of 256" in message
    assert "at least 256.0" in message
    assert not refused(1000, 0.5, 256.0, 512, 256)
    assert refused(1000, 0.5, 255.5, 512, 256)


def test_the_smallest_buffer_named_works_though_no_float_equals_it() -> None:
    with pytest.raises(ConfigError) as caught:
        make(10, 0.3333333333333333, 0.0, largest_insert=1001, largest_sample=7)
    smallest = float(caught.value.remedy.removeprefix("set it to at least ").partition(",")[0])
    assert not refused(10, 0.3333333333333333, smallest, 1001, 7)
    assert refused(10, 0.3333333333333333, smallest - 1e-9, 1001, 7)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_buffer_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"replay\.tables\.ring\.error_buffer=(inf|nan) is not a finite number"):
        make(1, 1.0, value)


def test_requests_larger_than_the_buffer_was_checked_for_are_refused_only_where_they_could_deadlock() -> None:
    coupled, free = make(1, 1.0, 4.0, 4, 4), make(1, 0.0, 0.0, 4, 4)
    coupled.check_insert(4)
    coupled.check_sample(4)
    with pytest.raises(ConfigError, match="an unroll of 5 steps"):
        coupled.check_insert(5)
    with pytest.raises(ConfigError, match="5 items are asked"):
        coupled.check_sample(5)
    free.check_insert(5)
    free.check_sample(5)


def reachable(
    min_size: int, ratio: Fraction, buffer: Fraction, largest_insert: int, largest_sample: int
) -> tuple[dict[tuple[int, int], tuple[set[int], set[int]]], bool]:
    """Explores every interleaving of every size: the sizes allowed in each state, and whether one blocks both sides.

    States are told apart by what the rule depends on: the inserts below min_size, then inserts * ratio - samples.
    """
    allowed: dict[tuple[int, int], tuple[set[int], set[int]]] = {}
    known: set[tuple[bool, Fraction]] = set()
    todo = [(0, 0)]
    deadlock = False
    while todo:
        inserts, samples = todo.pop()
        ahead = inserts * ratio - samples
        if (key := (inserts < min_size, ahead)) in known:
            continue
        known.add(key)
        target = min_size * ratio
        may_insert = {
            n for n in range(1, largest_insert + 1) if inserts < min_size or ahead + n * ratio <= target + buffer
        }
        may_sample = {n for n in range(1, largest_sample + 1) if inserts >= min_size and ahead - n >= target - buffer}
        allowed[inserts, samples] = may_insert, may_sample
        deadlock |= largest_insert not in may_insert and largest_sample not in may_sample
        todo += [(inserts + n, samples) for n in may_insert] + [(inserts, samples + n) for n in may_sample]
    return allowed, deadlock


@settings(max_examples=300, deadline=None)
@given(
    min_size=st.integers(1, 4),
    ratio=st.sampled_from([0.25, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0]),
    buffer=st.integers(0, 60).map(lambda eighths: eighths / 8),
    largest_insert=st.integers(1, 4),
    largest_sample=st.integers(1, 4),
)
def test_settings_are_refused_exactly_when_some_interleaving_blocks_both_sides(
    min_size: int, ratio: float, buffer: float, largest_insert: int, largest_sample: int
) -> None:
    allowed, deadlock = reachable(min_size, Fraction(str(ratio)), Fraction(str(buffer)), largest_insert, largest_sample)
    assert refused(min_size, ratio, buffer, largest_insert, largest_sample) == deadlock
    if deadlock:
        return
    for (inserts, samples), (may_insert, may_sample) in allowed.items():
        limiter = make(min_size, ratio, buffer, largest_insert, largest_sample)
        limiter.inserted(inserts)
        limiter.sampled(samples)
        assert {n for n in range(1, largest_insert + 1) if limiter.may_insert(n)} == may_insert
        assert {n for n in range(1, largest_sample + 1) if limiter.may_sample(n)} == may_sample
