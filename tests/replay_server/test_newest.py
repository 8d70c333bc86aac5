"""Batches of which a share is the newest items: which ones, and with what probability."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import World

from common.config import TableConfig
from common.types import Arrays
from services.replay_server.ring.selectors import NewestFirst, Prioritized, Uniform
from services.replay_server.ring.table import RingTable
from services.replay_server.unroll import Drawn


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_half_of_a_draw_are_the_newest_and_both_halves_make_their_probability() -> None:
    selector, random = NewestFirst(Uniform(8), 8, 0.5), np.random.default_rng(0)
    selector.add(np.array([0, 1, 2, 3, 4, 5]), None)
    drawn, probabilities = selector.draw(4, 6, random)
    assert drawn[:2].tolist() == [4, 5]
    # Half a draw is uniform over 6, and each of the newest is one of 4 for certain.
    expected = {place: 1 / 12 + (1 / 4 if place >= 4 else 0) for place in range(6)}
    assert probabilities.tolist() == pytest.approx([expected[place] for place in drawn.tolist()], rel=1e-12)
    assert sum(expected.values()) == pytest.approx(1.0)


def test_the_newest_are_told_by_when_they_came_not_by_where_they_lie() -> None:
    selector, random = NewestFirst(Uniform(8), 8, 1.0), np.random.default_rng(0)
    selector.add(np.array([6, 7, 0]), None)
    selector.add(np.array([3]), None)
    selector.clear(np.array([0, 1]))
    assert selector.draw(2, 8, random)[0].tolist() == [7, 3]
    selector.add(np.array([0]), None)
    assert selector.draw(3, 8, random)[0].tolist() == [7, 3, 0]
    assert selector.draw(2, 8, random)[1].tolist() == [0.5, 0.5]


def test_where_items_are_few_the_newest_are_all_of_them_and_the_rest_is_drawn() -> None:
    selector = NewestFirst(Uniform(8), 8, 1.0)
    selector.add(np.array([2, 5]), None)
    drawn, probabilities = selector.draw(4, 8, np.random.default_rng(0))
    assert drawn[:2].tolist() == [2, 5]
    assert set(drawn[2:].tolist()) <= {2, 5}
    assert probabilities.tolist() == [0.5] * 4


def test_priorities_decide_about_the_rest_and_go_into_the_probability() -> None:
    rest = Prioritized(8, alpha=1.0)
    selector = NewestFirst(rest, 8, 0.25)
    selector.add(np.array([0, 1, 2]), np.array([1.0, 2.0, 5.0]))
    selector.add(np.array([3]), np.array([2.0]))
    drawn, probabilities = selector.draw(4, 4, np.random.default_rng(0))
    assert drawn[0] == 3
    # Three quarters by priority of 10, a quarter the newest.
    expected = [0.075, 0.15, 0.375, 0.15 + 0.25]
    assert probabilities.tolist() == pytest.approx([expected[place] for place in drawn.tolist()], rel=1e-12)
    assert (selector.size, selector.mass) == (4, 10.0)


@pytest.mark.parametrize("by_priority", [False, True])
def test_items_are_drawn_as_often_as_their_probabilities_say(by_priority: bool) -> None:
    random, size, n, draws = np.random.default_rng(3), 100, 6, 20_000
    rest = Prioritized(size, alpha=0.5) if by_priority else Uniform(size)
    selector = NewestFirst(rest, size, 0.25)
    selector.add(random.permutation(size), random.random(size) + 0.1)
    counts, chance, newest = np.zeros(size), np.zeros(size), 0
    for _ in range(draws):
        drawn, probabilities = selector.draw(n, size, random)
        counts += np.bincount(drawn, minlength=size)
        # An item's own probability depends on whether the share came out as one newest item or as two.
        newest += 2 if probabilities[1] > 1 / n else 1
        chance += 0.75 * rest.chances(np.arange(size))
    assert counts.sum() == n * draws
    # A quarter of 6 is 1.5: within five standard deviations of it.
    assert abs(newest / draws - 1.5) < 5 * 0.5 / draws**0.5
    expected = n * chance
    last = selector.draw(2 * n, size, random)[0][:3]
    ends = counts[last[1:]] - expected[last[1:]]
    assert ends.tolist() == pytest.approx([draws * 0.5, draws], rel=0.03)
    others = np.setdiff1d(np.arange(size), last[1:])
    # The 0.999 quantile of chi-square with 97 degrees of freedom; strata only make it smaller.
    assert chi_square(counts[others], expected[others]) < 145.7


@settings(max_examples=100, deadline=None)
@given(capacity=st.integers(1, 9), random=st.randoms(use_true_random=False), turns=st.integers(1, 60))
def test_the_newest_are_found_however_late_items_complete(capacity: int, random: Random, turns: int) -> None:
    selector = NewestFirst(Uniform(capacity), capacity, 1.0)
    waiting, order = list[int](), list[int]()
    for turn in range(turns):
        # A place is used again when the ring comes round; its item completes at any time before that, or never.
        place = turn % capacity
        selector.clear(np.array([place]))
        waiting = [*(other for other in waiting if other != place), place]
        order = [other for other in order if other != place]
        complete = [other for other in waiting if random.random() < 0.3]
        random.shuffle(complete)
        selector.add(np.array(complete, np.int64), None)
        waiting = [other for other in waiting if other not in complete]
        order += complete
        if order:
            n = random.randint(1, capacity)
            found = selector.draw(n, capacity, np.random.default_rng(0))[0].tolist()
            assert found[: len(order)] == order[-n:]
            assert set(found) <= set(order)


def table_of(seed: int, **settings: object) -> RingTable:
    config = TableConfig.model_validate({"kind": "uniform", "capacity": 400, **settings})
    return RingTable("ring", config, 4, largest_insert=12, largest_sample=8, seed=seed)


def fill(table: RingTable, world: World, unrolls: int) -> None:
    for _ in range(unrolls):
        unroll = world.unroll("a")
        table.check(unroll)
        table.insert(unroll, None)
        table.poll(0.0)


def draw(table: RingTable, n: int) -> tuple[Arrays, int, float]:
    table.sample(n, 0, None)
    (answer,) = table.poll(0.0)
    assert isinstance(answer, Drawn)
    assert answer.arrays is not None
    return answer.arrays, table.size, table.mass


@pytest.mark.parametrize(
    "settings",
    [{"kind": "unrolls"}, {"kind": "prioritized", "n_step": 2, "discount": 0.9}, {"sequence": 4, "period": 4}],
)
def test_every_kind_of_ring_puts_its_newest_items_first(settings: dict[str, object]) -> None:
    world, table = World(4, 1, seed=2), table_of(0, newest=0.5, **settings)
    world.begin("a", 3)
    fill(table, world, 60)
    drawn, size, _ = draw(table, 8)
    keys, expected = drawn["keys"], drawn["probabilities"]
    assert len(set(keys[:4].tolist())) == 4
    # In chunks of 4 steps, of which the last 60 * 3 - 100 are overwritten: only the last two unrolls are this new.
    assert (keys[:4] >= (60 - 2) * 3 * 4).all()
    assert (expected[:4] > 1 / 8).all()
    older = keys < (60 - 2) * 3 * 4
    assert older.any()
    if table.mass == size:
        assert expected[older].tolist() == [0.5 / size] * int(older.sum())


def test_two_shards_draw_their_own_newest_and_the_weights_still_make_every_item_equal() -> None:
    """As a learner does: n is shared out by mass, each item's probability is its shard's times the shard's share."""
    random, n, draws = np.random.default_rng(0), 8, 4000
    tables, world = [table_of(seed, newest=0.25, capacity=80) for seed in (1, 2)], World(4, 1, seed=9)
    world.begin("a", 3)
    for table, unrolls in zip(tables, (3, 6), strict=True):
        fill(table, world, unrolls)
    masses = np.array([table.mass for table in tables])
    weight: dict[tuple[int, int], float] = {}
    for _ in range(draws):
        for shard, k in enumerate(random.multinomial(n, masses / masses.sum())):
            if k:
                drawn, _, mass = draw(tables[shard], int(k))
                for key, p in zip(drawn["keys"].tolist(), drawn["probabilities"].tolist(), strict=True):
                    place = (shard, key)
                    weight[place] = weight.get(place, 0.0) + 1 / (n * draws * p * mass / masses.sum())
    total = sum(table.size for table in tables)
    assert len(weight) == total
    found = np.array([*weight.values()])
    # Each item's weighted frequency estimates 1; with some 270 draws of a common one, within six of its deviations.
    assert abs(found - 1.0).max() < 0.4
    assert found.mean() == pytest.approx(1.0, abs=0.01)
