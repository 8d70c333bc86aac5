"""A table that lies on several replay-servers, asked as one. Knows no priorities and no updates.

A shard that is lost is passed over until it is back; when all were for too long the table is given up. One that gives
nothing by the deadline, as where its env-servers are gone, is not waited for: it owes an answer, is asked for nothing
else, and what it gives at last is not lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.config import Config
from common.errors import PeerLost
from common.messages import Batch, Sample
from common.transport.client import Client

log = logging.getLogger("headrace.learner")

# Of all priorities, what a shard without any is taken to have: it would not be asked again.
_LEAST = 1e-3


@dataclass(frozen=True, slots=True)
class Part:
    """A Batch, the replay-server and its life that it is from, and N times its share of a draw from N items in all."""

    batch: Batch
    shard: int
    life: int
    odds: float = 1.0


class Shards:
    """The shards of one table. Both ways of asking raise PeerLost when none was there for `net.give_up_s`."""

    def __init__(self, table: str, clients: Sequence[Client], config: Config) -> None:
        self._table, self._clients, self._max_lag = table, clients, config.replay.max_policy_lag
        self._deadline_s = config.replay.group_deadline_s if len(clients) > 1 else None
        self._give_up_s, self._look_s = config.net.give_up_s, 2 * config.net.deadline_s
        self._silent_s = self._looked = 0.0
        self._turn = 0
        self._random = np.random.default_rng(config.run.seed)
        # Priority masses and sizes as last heard: a ring's draws are shared out by the masses.
        self._masses, self._sizes = np.ones(len(clients)), np.zeros(len(clients))
        self._owed: dict[int, asyncio.Task[Part | None]] = {}

    async def next_batch(self, n: int, version: int) -> Part:
        """Gives `n` unrolls of a FIFO table, of one shard after the other."""
        self._hear()
        while True:
            idle = self._idle()
            if idle:
                shard = min(idle, key=lambda s: (s - self._turn) % len(self._clients))
                self._turn = shard + 1
                self._ask(shard, n, version, 1.0)
            done = await self._wait(asyncio.FIRST_COMPLETED, self._deadline_s if len(idle) > 1 else None)
            if done and (part := self._owed.pop(done[0]).result()) and self._fresh(part, version):
                return part

    async def share_out(self, n: int, version: int) -> tuple[Part, ...]:
        """Draws `n` items of a ring, each with the probability it has in the whole.

        Fewer come where a shard is lost or late; what comes late is part of a later draw.
        """
        self._hear()
        while True:
            parts = self._answered([shard for shard, task in self._owed.items() if task.done()])
            idle, rest = self._idle(), n - sum(len(part.batch.arrays["keys"]) for part in parts)
            among = sorted({*idle, *(part.shard for part in parts)})
            if idle and rest > 0:
                mass = np.maximum(self._masses[idle], _LEAST * self._masses[idle].sum())
                share = mass / mass.sum() if mass.any() else np.full(len(idle), 1 / len(idle))
                for shard, odds, k in zip(idle, share, self._random.multinomial(rest, share), strict=True):
                    if k:
                        self._ask(shard, int(k), version, float(odds))
                done = await self._wait(asyncio.ALL_COMPLETED, self._deadline_s, idle)
                parts += self._answered(done)
            if parts:
                # Not by the masses that came with them: priorities may have changed since these shares were known.
                return tuple(replace(part, odds=part.odds * float(self._sizes[among].sum())) for part in parts)
            if self._owed:
                await self._wait(asyncio.FIRST_COMPLETED, None)

    async def close(self) -> None:
        """Waits for nobody any more."""
        tasks = [*self._owed.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _hear(self) -> None:
        self._silent_s, self._looked = 0.0, time.monotonic()

    def _idle(self) -> list[int]:
        """The shards to ask: those that are there and owe nothing; where none is there all that owe nothing."""
        idle = [shard for shard in range(len(self._clients)) if shard not in self._owed]
        return [shard for shard in idle if self._clients[shard].live] or ([] if self._owed else idle)

    def _ask(self, shard: int, n: int, version: int, odds: float) -> None:
        self._owed[shard] = asyncio.create_task(self._request(shard, Sample(self._table, n, version), odds))

    async def _request(self, shard: int, sample: Sample, odds: float) -> Part | None:
        client = self._clients[shard]
        try:
            batch = await client.request(sample)
        except PeerLost:
            if len(self._clients) == 1:
                raise
            # A client counts from each request anew, and this one is asked again and again. A longer time between two
            # looks is one in which this process itself was stopped.
            now = time.monotonic()
            self._silent_s, self._looked = self._silent_s + min(now - self._looked, self._look_s), now
            if self._silent_s >= self._give_up_s and not any(client.live for client in self._clients):
                text = f"no replay-server has been there for {self._silent_s:.0f} s"
                raise PeerLost(text, "are they running? see net.give_up_s") from None
            return None
        self._hear()
        return Part(batch, shard, client.server_life, odds)

    async def _wait(self, until: str, timeout: float | None, among: Sequence[int] | None = None) -> list[int]:
        """Gives the shards, of all that owe or of those `among` which do, that have answered: the first asked first."""
        waited = {task: shard for shard, task in self._owed.items() if among is None or shard in among}
        done, late = await asyncio.wait(waited, timeout=timeout, return_when=until)
        if late and not (until == asyncio.FIRST_COMPLETED and done):
            names = ", ".join(f"replay-{waited[task]}" for task in late)
            log.warning("%s gave nothing of %r for %g s: its env-servers may be gone", names, self._table, timeout)
        return [shard for task, shard in waited.items() if task in done]

    def _fresh(self, part: Part, version: int) -> bool:
        """Says whether `version` may train on unrolls: what came late was asked for by an earlier one."""
        if len(self._clients) == 1:
            return True
        oldest = min(int(x.min()) for name, x in part.batch.arrays.items() if name.endswith("/versions"))
        if oldest < version - self._max_lag:
            log.warning("what replay-%d gave late of %r is too old to train on, and dropped", part.shard, self._table)
        return oldest >= version - self._max_lag

    def _answered(self, shards: Sequence[int]) -> list[Part]:
        parts = [part for shard in shards if (part := self._owed.pop(shard).result())]
        for part in parts:
            self._masses[part.shard], self._sizes[part.shard] = part.batch.mass, part.batch.size
        return parts
