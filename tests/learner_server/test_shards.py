"""Unrolls from several FIFO tables in turn: past those that give nothing, whose late answers are taken or too old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import numpy as np
import pytest

from common.config import ReplayConfig
from common.messages import Batch, Sample
from common.transport.client import Client
from services.learner_server.shards.table import Shards

LAG = 4


class Queue:
    """A replay-server whose unrolls were acted by the version that asks for them, or by `acted`; held by `giving`."""

    live, server_life = True, 5

    def __init__(self) -> None:
        self.giving, self.asked = asyncio.Event(), 0
        self.acted: int | None = None
        self.giving.set()

    async def request(self, sample: Sample) -> Batch:
        self.asked += 1
        await self.giving.wait()
        version = sample.version if self.acted is None else self.acted
        return Batch(0, 1, 1.0, 0, (), {"0/versions": np.array([version, version + 1])})


@asynccontextmanager
async def shards_of(queues: Sequence[Queue]) -> AsyncIterator[Shards]:
    shards = Shards(
        "experience", cast(list[Client], list(queues)), ReplayConfig(group_deadline_s=0.05, max_policy_lag=LAG), 0
    )
    async with asyncio.timeout(20):
        try:
            yield shards
        finally:
            await shards.close()


async def test_each_shard_has_its_turn() -> None:
    async with shards_of([Queue(), Queue(), Queue()]) as shards:
        assert [(await shards.next_batch(1, version)).shard for version in range(6)] == [0, 1, 2, 0, 1, 2]


async def test_a_shard_that_gives_nothing_is_waited_for_once_and_its_late_answer_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queues = [Queue(), Queue()]
    queues[1].giving.clear()
    async with shards_of(queues) as shards:
        assert {(await shards.next_batch(1, version)).shard for version in range(10)} == {0}
        assert queues[1].asked == 1
        assert caplog.messages == [
            "replay-1 gave nothing of 'experience' for 0.05 s: its env-servers may be gone",
        ]
        queues[1].acted = 9
        queues[1].giving.set()
        assert [(await shards.next_batch(1, version)).shard for version in range(10, 14)] == [1, 0, 1, 0]


async def test_what_comes_late_and_is_too_old_is_dropped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    queues = [Queue(), Queue()]
    queues[1].giving.clear()
    async with shards_of(queues) as shards:
        for version in range(10):
            await shards.next_batch(1, version)
        queues[1].acted = 10 - LAG - 1
        queues[1].giving.set()
        caplog.clear()
        assert (await shards.next_batch(1, 10)).shard == 0
        assert (await shards.next_batch(1, 10)).shard == 0
        assert "what replay-1 gave late of 'experience' is too old to train on, and dropped" in caplog.messages
        queues[1].acted = 10 - LAG
        assert {(await shards.next_batch(1, 10)).shard for _ in range(3)} == {0, 1}
