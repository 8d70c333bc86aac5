"""A learner's draws from several rings: real tables behind clients that need no wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import pytest

from common.config import Config, TableConfig, validate
from common.errors import PeerLost
from common.messages import Batch, Ok, Sample, UpdatePriorities
from common.transport.client import Client
from common.types import Arrays
from services.learner_server.feed import PRIORITIES_IN_FLIGHT, Draw, Feed, Stage
from services.replay_server.ring.table import RingTable
from services.replay_server.unroll import Drawn, Unroll

TABLE: dict[str, Any] = {"kind": "prioritized", "capacity": 100, "alpha": 1.0}


class Shard:
    """One replay-server's table of `items`, each with its number as its reward.

    `answering` holds answers to priorities back, `giving` those to Samples, whose sizes are `asked`.
    """

    server_life = 5

    def __init__(self, items: Sequence[int], **table: Any) -> None:
        self.live, self.lost = True, False
        self.answering, self.giving = asyncio.Event(), asyncio.Event()
        self.answering.set()
        self.giving.set()
        self.asked: list[int] = []
        T = len(items)
        config = TableConfig(**TABLE, **table)
        self._table = RingTable("experience", config, T, largest_insert=T, largest_sample=99, seed=T)
        self._filled = asyncio.Event()
        self._drawn: list[Drawn] = []
        self._items, self._unrolls = items, 0
        self.fill()

    def fill(self) -> None:
        """Inserts the items, once more if they are there."""
        items, T = self._items, len(self._items)
        arrays: Arrays = {
            "observation.obs": np.zeros((T + 1, 1, 1), np.float32),
            "first": np.zeros((T + 1, 1), np.bool_),
            "action": np.zeros((T, 1), np.int64),
            "reward": np.array(items, np.float32)[:, None],
            **{name: np.zeros((T, 1), np.bool_) for name in ("terminated", "truncated")},
            "valid": np.ones((T, 1), np.bool_),
        }
        self._unrolls += 1
        unroll = Unroll("env-0/0", 1, self._unrolls, 0, arrays)
        self._table.check(unroll)
        self._table.insert(unroll, "insert")
        self._poll()
        self._filled.set()

    def _poll(self) -> None:
        self._drawn += [answer for answer in self._table.poll(0.0) if isinstance(answer, Drawn)]

    def weigh(self, priorities: Sequence[float]) -> None:
        """Gives the items these priorities before the next draw."""
        self._table.update({"keys": np.arange(len(priorities)), "priorities": np.array(priorities)})

    @property
    def mass(self) -> float:
        return self._table.mass

    async def request(self, message: Sample | UpdatePriorities) -> Batch | Ok:
        if self.lost:
            raise PeerLost("gone")
        if isinstance(message, UpdatePriorities):
            await self.answering.wait()
            self._table.update(message.arrays, stale=message.life != self.server_life)
            return Ok()
        self.asked.append(message.n)
        await self.giving.wait()
        self._table.sample(message.n, message.version, "draw")
        self._poll()
        while not self._drawn:
            self._filled.clear()
            await self._filled.wait()
        answer = self._drawn.pop()
        assert answer.arrays is not None
        return Batch(0, self._table.size, self._table.mass, 0, (), answer.arrays)


@asynccontextmanager
async def feeding(*shards: Shard, stage: Stage = lambda drawn, batches: drawn) -> AsyncIterator[Feed]:
    config: Config = validate(
        {
            "env": {"groups": len(shards)},
            "replay": {"servers": len(shards), "tables": {"experience": TABLE}, "group_deadline_s": 0.05},
            "learner": {"batch": 50},
        }
    )
    feed = Feed(config, cast(list[Client], list(shards)), 1, 0, stage)
    try:
        yield feed
    finally:
        await feed.close()


def staged(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """The items of a draw by number, and what the learner is told of their odds."""
    return draw.staged["reward"].astype(np.int64), draw.staged["relative"].astype(np.float64)


async def test_items_are_drawn_as_often_as_their_share_of_all_shards_says() -> None:
    shards = [Shard(range(5)), Shard(range(5, 15))]
    priorities = np.arange(1.0, 16.0)
    shards[0].weigh(priorities[:5])
    shards[1].weigh(priorities[5:])
    chances = priorities / priorities.sum()
    counts, draws = np.zeros(15), 200
    async with feeding(*shards) as feed:
        # Before the first answers nobody knows the masses.
        await feed.next()
        for _ in range(draws):
            items, relative = staged(await feed.next())
            np.testing.assert_allclose(relative, 15 * chances[items], rtol=1e-6)
            counts += np.bincount(items, minlength=15)
    deviation = np.sqrt(50 * draws * chances * (1 - chances))
    assert (np.abs(counts - 50 * draws * chances) < 5 * deviation).all()


async def test_importance_is_unbiased_while_the_masses_of_the_shards_change_from_draw_to_draw() -> None:
    shards = [Shard(range(5)), Shard(range(5, 15))]
    weights, draws = np.zeros(15), 400
    async with feeding(*shards) as feed:
        for turn in range(draws):
            large, small = shards[turn % 2], shards[1 - turn % 2]
            large.weigh([10.0 + k for k in range(5 if large is shards[0] else 10)])
            small.weigh([1.0 + k / 10 for k in range(5 if small is shards[0] else 10)])
            items, relative = staged(await feed.next())
            np.add.at(weights, items, 1.0 / relative)
    # An item's 1/P sums to the number of draws; of the least likely it is 150 every other time: 5 deviations are 0.31.
    np.testing.assert_allclose(15 * weights / (50 * draws), 1.0, atol=0.35)


async def test_the_next_draw_is_made_ready_in_a_thread_while_the_one_before_it_is_trained_on() -> None:
    loop, twice = asyncio.get_running_loop(), asyncio.Event()
    made: list[tuple[int, int, bool]] = []

    def stage(drawn: Arrays, batches: int) -> int:
        made.append((len(drawn["reward"]), batches, threading.current_thread() is threading.main_thread()))
        if len(made) == 2:
            loop.call_soon_threadsafe(twice.set)
        return len(made)

    async with feeding(Shard(range(5)), stage=stage) as feed:
        assert (await feed.next()).staged == 1
        await asyncio.wait_for(twice.wait(), 10.0)
        assert made[:2] == [(50, 1, False)] * 2
        assert (await feed.next()).staged == 2


async def test_the_mean_weight_is_one_before_anything_is_known_of_the_masses() -> None:
    shards = [Shard(range(5)), Shard(range(5, 15))]
    shards[1].weigh([100.0] * 10)
    async with feeding(*shards) as feed:
        items, relative = staged(await feed.next())
    # Half of the draw goes to either shard: 15 · 1/2 · 1/5, and 15 · 1/2 · 1/10.
    np.testing.assert_allclose(relative, np.where(items < 5, 1.5, 0.75))


async def test_a_shard_that_is_lost_is_left_out_and_its_items_are_not_counted() -> None:
    shards = [Shard(range(5)), Shard(range(5, 15))]
    async with feeding(*shards) as feed:
        await feed.next()
        await feed.next()
        shards[0].live = False
        await feed.next()
        items, relative = staged(await feed.next())
        assert items.min() >= 5
        np.testing.assert_allclose(relative, 1.0)
        shards[0].live = shards[0].lost = True
        for _ in range(3):
            items, _ = staged(await feed.next())
        assert items.min() >= 5


async def test_a_shard_that_gives_nothing_is_waited_for_once_and_what_it_gives_late_is_drawn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shards = [Shard(range(5)), Shard(range(5, 15))]
    async with feeding(*shards) as feed, asyncio.timeout(20):
        await feed.next()
        await feed.next()
        shards[1].giving.clear()
        asked = len(shards[1].asked)
        while len(shards[1].asked) == asked:
            await feed.next()
        sizes = [len(staged(await feed.next())[0]) for _ in range(20)]
        # Asked once more, and not again; after the draw that went without its part, whole ones from the other.
        assert len(shards[1].asked) == asked + 1
        assert sizes[3:] == [50] * 17
        assert sum("replay-1 gave nothing of 'experience' for 0.05 s" in said for said in caplog.messages) == 1
        shards[1].giving.set()
        late = 0
        while not late:
            items, _ = staged(await feed.next())
            late = np.count_nonzero(items >= 5)
        assert (len(items), late) == (50, sum(shards[1].asked[asked : asked + 2]))
        for _ in range(2):
            await feed.next()
        # As if nothing had been: 15 items, of equal priority.
        np.testing.assert_allclose(staged(await feed.next())[1], 1.0, rtol=1e-6)


async def test_a_shard_whose_items_were_all_taken_away_is_drawn_from_again_once_it_has_others() -> None:
    shards = [Shard(range(5), max_times_sampled=1), Shard(range(5, 15))]
    async with feeding(*shards) as feed, asyncio.timeout(60):
        while shards[0].mass:
            await feed.next()
        items, _ = staged(await feed.next())
        items, _ = staged(await feed.next())
        assert items.min() >= 5
        # Before it is asked anew, and while it owes an answer.
        for asked in (0, 1):
            while len(shards[0].asked) < 1 + asked:
                await feed.next()
            shards[0].fill()
            while staged(await feed.next())[0].min() >= 5:
                pass


async def test_a_table_that_is_empty_again_is_waited_for() -> None:
    shard = Shard(range(5), max_times_sampled=1)
    async with feeding(shard) as feed, asyncio.timeout(20):
        await feed.next()
        await turns()
        assert shard.mass == 0.0
        shard.fill()
        assert set(staged(await feed.next())[0].tolist()) <= set(range(5))


async def turns(count: int = 20) -> None:
    """Lets everything that can run without an answer do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_draws_go_on_while_priorities_are_unanswered_up_to_a_bound() -> None:
    shard = Shard(range(5))
    mass = shard.mass
    shard.answering.clear()
    async with feeding(shard) as feed, asyncio.timeout(20):
        for _ in range(PRIORITIES_IN_FLIGHT):
            await feed.prioritize(await feed.next(), np.full(50, 9.0))
        draw = await feed.next()
        one_more = asyncio.ensure_future(feed.prioritize(draw, np.full(50, 9.0)))
        await turns()
        assert not one_more.done()
        assert shard.mass == mass
        shard.answering.set()
        await one_more
        await turns()
        await feed.next()
        await feed.next()
        assert shard.mass == pytest.approx(5 * 9.0)


async def test_a_priority_of_nan_is_not_sent() -> None:
    shard = Shard(range(5))
    async with feeding(shard) as feed, asyncio.timeout(20):
        draw = await feed.next()
        items, _ = staged(draw)
        await feed.prioritize(draw, np.where(items == 2, np.nan, 4.0))
        await turns()
        await feed.next()
        await feed.next()
    assert shard.mass == pytest.approx(4 * 4.0 + 1.0)


async def test_each_shard_gets_the_priorities_of_its_own_items() -> None:
    shards = [Shard(range(5)), Shard(range(5, 15))]
    async with feeding(*shards) as feed, asyncio.timeout(20):
        for _ in range(20):
            draw = await feed.next()
            items, _ = staged(draw)
            await feed.prioritize(draw, np.where(items < 5, 2.0, 3.0))
        await turns()
        await feed.next()
        await feed.next()
    assert [shard.mass for shard in shards] == pytest.approx([5 * 2.0, 10 * 3.0])
