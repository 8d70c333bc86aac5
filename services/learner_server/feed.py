"""Where a learner's batches come from: every table and shard it trains on, asked ahead where the job allows it.

And where new priorities go, without waiting for them to arrive. Knows the wire, but no algorithm and no torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from common.config import Config
from common.errors import PeerLost
from common.messages import Batch, Sample, UpdatePriorities
from common.transport.client import Client
from common.types import Arrays, make_version
from services.learner_server.staging import join

PRIORITIES_IN_FLIGHT = 8
Stage = Callable[[Arrays, int], object]


@dataclass(frozen=True, slots=True)
class Part:
    """A Batch, the replay-server and its life that it is from, and N times its share of a draw from N items in all."""

    batch: Batch
    shard: int
    life: int
    odds: float = 1.0


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
        self._turn = 0
        self._random = np.random.default_rng(config.run.seed)
        # The shards' priority masses and sizes as last heard: a ring's draws are shared out by the masses.
        self._known = {name: (np.ones(len(shards)), np.zeros(len(shards))) for name in config.replay.tables}
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
        """Sends the new priorities of a draw's items on their way; waits only if many are under way already."""
        while len(self._priorities) >= PRIORITIES_IN_FLIGHT:
            done, _ = await asyncio.wait(self._priorities, return_when=asyncio.FIRST_COMPLETED)
            self._priorities -= done
            for task in done:
                task.result()
        start = 0
        for part in draw.online:
            keys = part.batch.arrays["keys"]
            arrays = {"keys": keys, "priorities": priorities[start : start + len(keys)]}
            start += len(keys)
            message = UpdatePriorities(self._learner.table, part.life, arrays)
            self._priorities.add(asyncio.create_task(self._send(part.shard, message)))

    async def close(self) -> None:
        """Stops fetching; priorities that are under way are given up."""
        tasks = [*self._priorities, *([self._fetcher] if self._fetcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        if not self._fifo:
            parts = await self._share_out(learner.table, learner.batch * learner.per_request, version)
            drawn = [(part.batch, part.odds) for part in parts]
            return Draw(parts, staged=await asyncio.to_thread(lambda: self._stage(join(drawn), learner.per_request)))
        if not mixed.table:
            return Draw((await self._in_turn(version),))
        n = mixed.per_online * self._columns
        online, replayed = await asyncio.gather(self._in_turn(version), self._share_out(mixed.table, n, version))
        return Draw((online,), replayed)

    async def _in_turn(self, version: int) -> Part:
        """Draws from a FIFO table: from one shard after the other, past those that are lost."""
        while True:
            shard = self._turn % len(self._shards)
            self._turn += 1
            if not self._shards[shard].live and any(client.live for client in self._shards):
                continue
            part = await self._ask(shard, Sample(self._learner.table, self._learner.batch, version))
            if part is not None:
                return part

    async def _share_out(self, table: str, n: int, version: int) -> tuple[Part, ...]:
        """Draws `n` items of a ring from all its live shards, each with the probability it has in the whole."""
        masses, sizes = self._known[table]
        while True:
            live = np.array([client.live for client in self._shards])
            mass = masses * live if live.any() else masses
            shares = mass / mass.sum()
            counts = self._random.multinomial(n, shares)
            asked = [self._ask(s, Sample(table, int(k), version)) for s, k in enumerate(counts) if k]
            parts = [part for part in await asyncio.gather(*asked) if part is not None]
            for part in parts:
                masses[part.shard], sizes[part.shard] = part.batch.mass, part.batch.size
            if parts:
                # Not by the masses that came with them: priorities may have changed since these shares were known.
                odds = shares * sizes[shares > 0].sum()
                return tuple(replace(part, odds=float(odds[part.shard])) for part in parts)

    async def _ask(self, shard: int, sample: Sample) -> Part | None:
        client = self._shards[shard]
        try:
            return Part(await client.request(sample), shard, client.server_life)
        except PeerLost:
            if len(self._shards) == 1:
                raise
            return None
