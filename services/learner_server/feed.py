"""Where a learner's batches come from: every table and shard it trains on, asked ahead where the job allows it.

And where new priorities go, without waiting for them to arrive. Knows the wire, but no algorithm and no torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config import Config
from common.errors import PeerLost
from common.messages import UpdatePriorities
from common.transport.client import Client
from common.types import Arrays, make_version
from services.learner_server.shards.table import Part, Shards
from services.learner_server.staging import join

PRIORITIES_IN_FLIGHT = 8
Stage = Callable[[Arrays, int], object]


@dataclass(frozen=True, slots=True)
class Draw:
    """What one update trains on: `online` from the learner's table, `staged` if that is a ring, and `replayed` ones."""

    online: tuple[Part, ...]
    replayed: tuple[Part, ...] = ()
    staged: Any = None


class Feed:
    """One job's batches. `updates` is the learner's own count; `trained` must be told of each batch that is done with.

    A prefetched batch is asked for by the version that those before it lead to. `stage` makes ready what a ring gave,
    joined, for so many batches: in a thread, while the draw before it is trained on.
    """

    def __init__(self, config: Config, shards: Sequence[Client], ordinal: int, updates: int, stage: Stage) -> None:
        self._learner = config.learner
        self._fifo = config.replay.tables[config.learner.table].kind == "fifo"
        self._columns = config.learner.batch * config.env.envs
        self._shards = shards
        self._ordinal = ordinal
        self._updates = updates
        self._stage = stage
        self._ahead = 0
        self._tables = {name: Shards(name, shards, config) for name in config.replay.tables}
        self._priorities: set[asyncio.Task[object]] = set()
        self._queue: asyncio.Queue[Draw] = asyncio.Queue(config.learner.prefetch)
        self._fetcher = None if config.synchronous else asyncio.create_task(self._prefetch())

    @property
    def depth(self) -> int:
        """Draws fetched ahead."""
        return self._queue.qsize()

    async def next(self) -> Draw:
        """Gives what the next update trains on; a fetcher that failed fails here."""
        if self._fetcher is None:
            return await self._draw(make_version(self._ordinal, self._updates))
        getter = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait({getter, self._fetcher}, return_when=asyncio.FIRST_COMPLETED)
            if not getter.done():
                self._fetcher.result()
            return await getter
        finally:
            getter.cancel()

    def trained(self, updates: int) -> None:
        """Says that a draw is done with, trained on or not; the learner's updates are then `updates`."""
        self._updates, self._ahead = updates, max(0, self._ahead - 1)

    async def prioritize(self, draw: Draw, priorities: np.ndarray) -> None:
        """Sends the new priorities of a draw's items on their way, but for those that are nan; waits only if many are
        under way already."""
        while len(self._priorities) >= PRIORITIES_IN_FLIGHT:
            done, _ = await asyncio.wait(self._priorities, return_when=asyncio.FIRST_COMPLETED)
            self._priorities -= done
            for task in done:
                task.result()
        start = 0
        for part in draw.online:
            keys = part.batch.arrays["keys"]
            own = priorities[start : start + len(keys)]
            new = ~np.isnan(own)
            arrays = {"keys": keys[new], "priorities": own[new]}
            start += len(keys)
            message = UpdatePriorities(self._learner.table, part.life, arrays)
            self._priorities.add(asyncio.create_task(self._send(part.shard, message)))

    async def close(self) -> None:
        """Stops fetching; priorities that are under way are given up."""
        tasks = [*self._priorities, *([self._fetcher] if self._fetcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *(t.close() for t in self._tables.values()), return_exceptions=True)

    async def _send(self, shard: int, message: UpdatePriorities) -> None:
        # With a server that is lost went the items.
        with suppress(PeerLost):
            await self._shards[shard].request(message)

    async def _prefetch(self) -> None:
        while True:
            draw = await self._draw(make_version(self._ordinal, self._updates + self._ahead))
            self._ahead += 1
            await self._queue.put(draw)

    async def _draw(self, version: int) -> Draw:
        learner, mixed = self._learner, self._learner.replayed
        table = self._tables[learner.table]
        if not self._fifo:
            parts = await table.share_out(learner.batch * learner.per_request, version)
            drawn = [(part.batch, part.odds) for part in parts]
            return Draw(parts, staged=await asyncio.to_thread(lambda: self._stage(join(drawn), learner.per_request)))
        new = table.next_batch(learner.batch, version)
        if not mixed.table:
            return Draw((await new,))
        stored = self._tables[mixed.table].share_out(mixed.per_online * self._columns, version)
        online, replayed = await asyncio.gather(new, stored)
        return Draw((online,), replayed)
