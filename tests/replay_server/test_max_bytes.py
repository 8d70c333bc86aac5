"""Rings within `max_bytes`: what fits, what goes, and that what is left is still what was inserted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Step, World

from common.config import TableConfig
from common.errors import ConfigError
from common.types import Arrays
from services.replay_server.ring.budget import Budget
from services.replay_server.ring.storage import layout_of
from services.replay_server.ring.table import RingTable
from services.replay_server.unroll import Drawn, Unroll

KINDS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform", "n_step": 3, "discount": 0.9},
    "prioritized": {"kind": "prioritized", "n_step": 3, "discount": 0.9},
    "newest": {"kind": "uniform", "newest": 0.5},
    "taken away": {"kind": "uniform", "max_times_sampled": 3},
    "sequences": {"kind": "prioritized", "sequence": 8, "period": 4},
    "unrolls": {"kind": "unrolls"},
}


def table_of(max_bytes: int, capacity: int = 40_000, unroll: int = 4, least: int = 1, **settings: Any) -> RingTable:
    config = TableConfig.model_validate({"kind": "uniform", "capacity": capacity, "max_bytes": max_bytes, **settings})
    return RingTable("ring", config, unroll, largest_insert=1, largest_sample=1, seed=0, least=least)


def put(table: RingTable, unroll: Unroll) -> None:
    table.check(unroll)
    table.insert(unroll, None)
    table.poll(0.0)


def draw(table: RingTable, n: int) -> Arrays:
    table.sample(n, 0, None)
    (answer,) = table.poll(0.0)
    assert isinstance(answer, Drawn)
    assert answer.arrays is not None
    return answer.arrays


def arrays_in(value: object, seen: set[int]) -> Iterator[np.ndarray]:
    """Every array that is reached from here, each piece of memory once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        if value.base is None:
            yield value
        else:
            yield from arrays_in(value.base, seen)
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_in(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from arrays_in(item, seen)
    elif type(value).__module__.startswith("services."):
        yield from arrays_in(vars(value), seen)


def held(table: RingTable) -> int:
    """Bytes of all arrays of a table, but for what it knows of its streams."""
    return sum(array.nbytes for array in arrays_in({**vars(table), "_streams": None}, set()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("max_bytes", [30_000, 400_000])
def test_all_arrays_of_a_full_table_stay_within_the_bytes_and_use_them(kind: str, stack: int, max_bytes: int) -> None:
    world, table = World(4, stack, seed=1), table_of(max_bytes, **KINDS[kind])
    for number in range(60):
        slot = "abcd"[number % 4]
        if number % 13 < 4:
            world.begin(slot, 1 + number % 4)
        put(table, world.unroll(slot))
        assert held(table) <= max_bytes
    # Another chunk of four steps would not fit.
    assert held(table) > max_bytes - 4 * 120
    assert 0 < table.capacity < 40_000
    assert table.nbytes <= max_bytes


def test_what_fits_is_counted_in_literal_bytes() -> None:
    # A step: 8 observation, 8 action, 4 reward, 5 flags; 4 each of return, factor, following and final row; 1 ready.
    unroll = World(4, 1, seed=1)
    unroll.begin("a", 1)
    arrays = unroll.unroll("a").arrays
    kept = {"observation.obs", "first", "action", "reward", "terminated", "truncated", "valid"}
    small = Unroll("a", 1, 1, 0, {name: array for name, array in arrays.items() if name in kept})
    # 100 chunks: 400 steps of 42; a flag and a tail of 5 a chunk; 62 side rows of 12, 500 / 8, and a blank.
    enough = 400 * 42 + 100 * 5 + 62 * 12 + 8
    for max_bytes, steps in ((enough, 400), (enough - 1, 396)):
        table = table_of(max_bytes)
        put(table, small)
        assert (table.capacity, held(table) <= max_bytes) == (steps, True)
    assert held(table_of(enough)) == 0


def test_capacity_stands_where_it_is_the_smaller_of_the_two() -> None:
    world, capacity = World(4, 1, seed=1), 400
    world.begin("a", 2)
    unroll = world.unroll("a")
    free, bounded = table_of(0, capacity), table_of(10_000_000, capacity)
    for table in (free, bounded):
        put(table, unroll)
    assert free.capacity == bounded.capacity == 400
    assert held(free) == held(bounded)


def test_too_few_bytes_for_an_unroll_are_refused_naming_what_would_do() -> None:
    world = World(4, 1, seed=1)
    world.begin("a", 3)
    unroll = world.unroll("a")
    with pytest.raises(
        ConfigError, match=r"replay\.tables\.ring\.max_bytes=2000 is room for \d+ steps: too few"
    ) as caught:
        put(table_of(2000), unroll)
    enough = int(caught.value.remedy.removeprefix("set it to at least "))
    with pytest.raises(ConfigError):
        put(table_of(enough - 1), unroll)
    table = table_of(enough)
    put(table, unroll)
    # Eight unrolls of three environments.
    assert table.capacity == 8 * 3 * 4
    world.begin("b", 4)
    with pytest.raises(ConfigError, match="too few for unrolls of 4 environments"):
        put(table, world.unroll("b"))


@pytest.mark.parametrize("max_bytes", [0, 10**16])
def test_a_table_that_memory_cannot_hold_is_refused_naming_both_bounds(max_bytes: int) -> None:
    world = World(4, 1, seed=1)
    world.begin("a", 1)
    table = table_of(max_bytes, capacity=10**15)
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"\.capacity={10**15} with .*ring\.max_bytes={max_bytes} does not fit"):
            put(table, world.unroll("a"))
    assert table.capacity == 0


def test_too_few_bytes_for_a_batch_are_refused() -> None:
    world = World(4, 1, seed=1)
    world.begin("a", 1)
    with pytest.raises(ConfigError, match="or for the 1000 that items and batches need") as caught:
        put(table_of(20_000, least=1000), world.unroll("a"))
    table = table_of(int(caught.value.remedy.removeprefix("set it to at least ")), least=1000)
    put(table, world.unroll("a"))
    assert table.capacity == 1000


def played(data: st.DataObject, world: World, table: RingTable) -> None:
    widths: dict[str, int] = {}
    for _ in range(data.draw(st.integers(10, 40))):
        slot = data.draw(st.sampled_from("abc"))
        event = data.draw(st.sampled_from(["on"] * 6 + ["die", "skip"]))
        if slot not in widths or event == "die":
            widths[slot] = data.draw(st.integers(1, 3))
            world.begin(slot, widths[slot])
        elif event == "skip":
            world.skip(slot)
        put(table, world.unroll(slot))


def true(world: World) -> dict[int, Step]:
    return {step.seen[-1]: step for column in world.columns for step in column}


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    unroll=st.integers(3, 5),
    n=st.integers(1, 3),
    stack=st.sampled_from([1, 3]),
    newest=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_where_episodes_are_short_the_oldest_go_early_and_nothing_else_changes(
    data: st.DataObject, unroll: int, n: int, stack: int, newest: float, seed: int
) -> None:
    world = World(unroll, stack, seed)
    config = {"n_step": n, "discount": 0.5, "newest": newest}
    probe = World(unroll, stack, 0)
    probe.begin("a", 1)
    full = TableConfig.model_validate({"kind": "uniform", "capacity": 40_000, **config})
    max_bytes = Budget(full, layout_of(probe.unroll("a").arrays), unroll).holding(24)
    table = table_of(max_bytes, unroll=unroll, **config)
    played(data, world, table)
    assert table.capacity == 24 * unroll
    assert held(table) <= max_bytes
    # An episode in four steps: more last observations than a table of 24 chunks has room for.
    by_seen, columns = true(world), world.columns
    assert table.size
    drawn = draw(table, 64)
    for i in range(64):
        seen = drawn["observation.obs"][i].reshape(-1)
        step = by_seen[int(seen[-1])]
        steps = step.future()[:n]
        assert any(step in column for column in columns[-24:])
        assert seen.tolist() == list(step.seen)
        assert drawn["reward"][i] == sum(0.5**k * later.reward for k, later in enumerate(steps))
        assert drawn["discount"][i] == (0.0 if steps[-1].terminated else 0.5 ** len(steps))
        assert drawn["next_observation.obs"][i].reshape(-1).tolist() == list(steps[-1].after)


def test_the_steps_that_go_early_are_the_oldest_and_are_drawn_no_more() -> None:
    """Every step ends its episode, and there is room for an eighth of the last observations."""
    world = World(4, 1, seed=0)
    world.begin("a", 1)
    unroll = world.unroll("a")
    layout = layout_of(unroll.arrays)
    config = TableConfig.model_validate({"kind": "uniform", "capacity": 40_000})
    table = table_of(Budget(config, layout, 4).holding(40))
    for number in range(1, 100):
        arrays = unroll.arrays | {
            "observation.obs": number * 10.0 + np.arange(5)[:, None, None],
            "first": np.ones((5, 1), np.bool_),
            "truncated": np.ones((4, 1), np.bool_),
            "terminated": np.zeros((4, 1), np.bool_),
            "valid": np.ones((4, 1), np.bool_),
            "final_index": np.arange(4, dtype=np.int32),
            "final.obs": -(number * 10.0 + np.arange(4)[:, None]),
        }
        put(table, Unroll("a", 1, number, 0, arrays))
    # 40 chunks have 25 side rows: what four chunks take, and the newest observation, leaves room for another one.
    drawn = draw(table, 500)
    numbers = {int(seen) // 10 for seen in drawn["observation.obs"][:, 0]}
    assert numbers == {95, 96, 97, 98, 99}
    assert table.size == 20
    np.testing.assert_array_equal(drawn["next_observation.obs"], -drawn["observation.obs"])
    assert table.mass == 20.0
    assert table.capacity == 160
