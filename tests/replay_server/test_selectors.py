from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.replay_server.ring.selectors import NewestFirst, Prioritized, SumTree, TakenAway, Uniform


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 400) | st.sampled_from([5_000, 70_000]), seed=st.integers(0, 1000), data=st.data())
def test_a_sum_tree_finds_what_running_sums_find(size: int, seed: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    tree, weights = SumTree(size), np.zeros(size)
    for _ in range(data.draw(st.integers(1, 5))):
        index = random.integers(size, size=data.draw(st.integers(1, 50)))
        # Halves add up without rounding, so both ways find the same.
        values = random.integers(0, 9, len(index)) / 2
        tree.set(index, values)
        weights[index] = values
    np.testing.assert_array_equal(tree.weights[:size], weights)
    assert tree.total == weights.sum()
    if not weights.any():
        return
    n = 37
    drawn, found = tree.draw(n, np.random.default_rng(seed))
    np.testing.assert_array_equal(found, weights[drawn])
    targets = (np.random.default_rng(seed).random(n) + np.arange(n)) / n * weights.sum()
    np.testing.assert_array_equal(drawn, np.cumsum(weights).searchsorted(targets, side="right"))


@pytest.mark.parametrize("size", [100, 70_000, 1_100_000])
def test_a_sum_tree_never_gives_an_item_without_weight(size: int) -> None:
    random = np.random.default_rng(size)
    tree = SumTree(size)
    index = random.choice(size, size // 3, replace=False)
    tree.set(index, random.random(len(index)) ** 8 + 1e-30)
    np.testing.assert_allclose(tree.total, tree.weights.sum(), rtol=1e-12)
    for _ in range(30):
        assert (tree.weights[tree.draw(512, random)[0]] > 0).all()


def test_draws_follow_priorities_while_they_change() -> None:
    random, size = np.random.default_rng(5), 6000
    selector = Prioritized(size, alpha=0.7)
    selector.add(np.arange(size), None)
    priorities = np.ones(size)
    counts, expected = np.zeros(size), np.zeros(size)
    for _ in range(60):
        changed = random.integers(size, size=200)
        values = random.random(200) * 3
        selector.update(changed, values)
        priorities[changed] = values
        mass = np.maximum(priorities, 1e-8) ** 0.7
        drawn, probabilities = selector.draw(10_000, size, random)
        np.testing.assert_allclose(probabilities, (mass / mass.sum())[drawn], rtol=1e-9)
        counts += np.bincount(drawn, minlength=size)
        expected += 10_000 * mass / mass.sum()
    # 5,999 degrees of freedom: four standard deviations above their mean. Strata only make it smaller.
    assert chi_square(counts, expected) < 5999 + 4 * np.sqrt(2 * 5999)


def test_a_cleared_item_is_not_drawn_and_its_mass_is_gone() -> None:
    selector, random = Prioritized(64, alpha=1.0), np.random.default_rng(0)
    selector.add(np.arange(64), np.full(64, 2.0))
    selector.clear(np.arange(10, 64))
    assert (selector.size, selector.mass) == (10, 20.0)
    assert selector.draw(1000, 64, random)[0].max() < 10
    selector.clear(np.arange(64))
    assert (selector.size, selector.mass) == (0, 0.0)


def test_new_items_enter_at_the_largest_priority_ever_given() -> None:
    selector = Prioritized(8, alpha=0.5)
    selector.add(np.array([0]), None)
    assert selector.mass == 1.0
    assert selector.update(np.array([0]), np.array([16.0])) == 1
    selector.update(np.array([0]), np.array([4.0]))
    selector.add(np.array([1, 2]), np.array([np.nan, 9.0]))
    assert selector.mass == 2.0 + 4.0 + 3.0


@pytest.mark.parametrize("filled", [300, 1000])
def test_uniform_draws_pass_over_gaps_without_favour(filled: int) -> None:
    selector, random = Uniform(1000), np.random.default_rng(2)
    items = np.concatenate([np.arange(100), [filled - 3]])
    selector.add(items, None)
    drawn, probabilities = selector.draw(101_000, filled, random)
    assert set(probabilities.tolist()) == {1 / 101}
    counts = np.bincount(drawn, minlength=1000)[items]
    assert counts.sum() == 101_000
    # The 0.999 quantile of chi-square with 100 degrees of freedom.
    assert chi_square(counts, np.full(101, 1000.0)) < 149.4


@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_a_first_priority_that_is_not_finite_is_the_largest_so_far(unknown: float) -> None:
    selector = Prioritized(4, alpha=1.0)
    selector.add(np.array([0, 1]), np.array([3.0, unknown]))
    assert selector.mass == 4.0
    selector.add(np.array([2, 3]), np.array([unknown, 1.0]))
    assert selector.mass == 8.0


def test_an_item_is_taken_away_after_its_last_draw_and_may_come_again() -> None:
    selector, random = TakenAway(NewestFirst(Uniform(4), 4, 1.0), 4, 2), np.random.default_rng(0)
    selector.add(np.array([0, 1, 2]), None)
    # The newest two are drawn twice, then what is left of them.
    assert [selector.draw(2, 3, random)[0].tolist() for _ in range(2)] == [[1, 2], [1, 2]]
    assert selector.size == 1
    drawn, chances = selector.draw(3, 3, random)
    assert (drawn.tolist(), selector.size, selector.mass) == ([0, 0, 0], 0, 0.0)
    np.testing.assert_allclose(chances, [1.0] * 3)
    selector.add(np.array([1]), None)
    assert [selector.draw(1, 3, random)[0].tolist() for _ in range(2)] == [[1], [1]]
    assert selector.size == 0


@settings(max_examples=40, deadline=None)
@given(by_priority=st.booleans(), times=st.integers(1, 4), seed=st.integers(0, 1000))
def test_no_item_outlives_its_draws_nor_goes_before_them(by_priority: bool, times: int, seed: int) -> None:
    random, counts, places = np.random.default_rng(seed), np.zeros(30, np.int64), np.arange(30)
    rest = Prioritized(30, 1.0) if by_priority else Uniform(30)
    selector = TakenAway(rest, 30, times)
    selector.add(places, random.random(30) + 0.1 if by_priority else None)
    while selector.size:
        # What is taken away stays so, whatever its priority is said to be.
        if isinstance(rest, Prioritized):
            rest.update(places, random.random(30))
        drawn, _ = selector.draw(5, 30, random)
        assert (counts[drawn] < times).all()
        np.add.at(counts, drawn, 1)
        assert selector.size == np.count_nonzero(counts < times)
    assert (counts >= times).all()
