"""Several tables asked as one: past those that give nothing, whose late answers are taken or too old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import numpy as np
import pytest
from jobs import short_dir, until

from common.config import validate
from common.errors import PeerLost
from common.messages import Batch, Hello, Sample
from common.service import connect, make_context
from common.transport import client
from common.transport.client import Client
from common.transport.server import Server, Ticket
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
    replay = {"group_deadline_s": 0.05, "max_policy_lag": LAG}
    shards = Shards(
        "experience", cast(list[Client], list(queues)), validate({"replay": replay, "learner": {"batch": 1}})
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


@pytest.mark.parametrize("kind", ["fifo", "uniform"])
async def test_shards_of_which_none_was_there_for_too_long_are_given_up(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TICK_S", 0.02)
    config = validate(
        {
            "replay": {"servers": 2, "tables": {"experience": {"kind": kind}}, "max_policy_lag": LAG},
            "learner": {"batch": 1},
            "net": {"deadline_s": 0.1, "give_up_s": 0.5},
        }
    )
    with short_dir() as path:
        context = make_context(config, "learner")
        clients = [connect(context, f"ipc://{path}/{n}", "replay", max_in_flight=1, replaceable=True) for n in range(2)]
        shards = Shards("experience", clients, config)
        began = time.monotonic()
        try:
            async with asyncio.timeout(20):
                with pytest.raises(PeerLost, match=r"no replay-server has been there for .*net\.give_up_s") as caught:
                    await (shards.next_batch(1, 1) if kind == "fifo" else shards.share_out(1, 1))
        finally:
            await shards.close()
            for each in clients:
                each.close()
    assert caught.value.exit_code == 3
    assert time.monotonic() - began >= 0.5


async def test_the_time_in_which_a_learner_was_stopped_is_no_silence_of_its_replay_servers() -> None:
    config = validate(
        {
            "replay": {"servers": 2, "tables": {"experience": {"kind": "uniform"}}},
            "learner": {"batch": 1},
            "net": {"deadline_s": 0.5, "give_up_s": 3.0},
        }
    )
    batch = Batch(0, 1, 1.0, 0, (), {"keys": np.zeros(1, np.int64)})
    asked: list[Ticket] = []

    def answer(ticket: Ticket, parks: bool = False) -> None:
        if isinstance(ticket.message, Hello):
            ticket.welcome()
        elif parks:
            asked.append(ticket)
        else:
            ticket.reply(batch)

    with short_dir() as path:
        context = make_context(config, "learner")
        where = [f"ipc://{path}/{n}" for n in range(2)]
        servers = [Server(a, partial(answer, parks=True), net=config.net, metrics=context.metrics) for a in where]
        clients = [connect(context, a, "replay", max_in_flight=1, replaceable=True) for a in where]
        shards = Shards("experience", clients, config)
        drawn = asyncio.create_task(shards.share_out(1, 1))
        try:
            await until(lambda: asked, "its request")
            time.sleep(4.0)
            for server in servers:
                server.close()
            servers = [Server(a, answer, net=config.net, metrics=context.metrics) for a in where]
            assert (await asyncio.wait_for(drawn, 30))[0].batch.size == 1
        finally:
            await shards.close()
            for each in (*clients, *servers):
                each.close()
