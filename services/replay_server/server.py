"""The replay-server: messages in, calls on tables, answers out. Knows no algorithm and no torch."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
from prometheus_client import Counter

from common.config import Config
from common.errors import ProtocolError
from common.messages import Batch, Finish, Finished, Hello, Insert, Inserted, Ok, Sample, UpdatePriorities
from common.metrics import ReplayMetrics
from common.service import Context, until_stopped
from common.transport.server import Server, Ticket
from common.types import EnvSpec
from services.replay_server.fifo import FifoTable
from services.replay_server.ledger import Ledger
from services.replay_server.ring.keeper import RingKeeper
from services.replay_server.ring.table import RingTable, make_ring
from services.replay_server.unroll import Answer, Drawn, Unroll, check_unroll

POLL_S = 0.1

Table = FifoTable | RingTable


@dataclass(eq=False, slots=True)
class _Pending:
    """An Insert until every table it goes to has stored it."""

    ticket: Ticket
    insert: Insert
    left: int
    min_version: int = 0


class ReplayServer:
    """Feeds tables from Inserts and answers Samples from them."""

    def __init__(self, context: Context) -> None:
        config = context.config
        self._context = context
        self._metrics = ReplayMetrics(context.registry)
        self._tables = {name: make_table(name, config, context.index) for name in config.replay.tables}
        self._rings = {name: table for name, table in self._tables.items() if isinstance(table, RingTable)}
        self.keeper = RingKeeper(context, self._rings, self._poll)
        self.keeper.restore()
        self._counted: dict[Counter, float] = {}
        self._polled, self._stopped_s = time.monotonic(), 0.0
        self._ledger = Ledger()
        self._spec: EnvSpec | None = None
        self._spec_of = ""
        self._learner: int | None = None
        self._learner_hello: Ticket | None = None
        self.finished = asyncio.Event()
        address = config.net.experience[context.index % len(config.net.experience)]
        self.server = Server(address, self._handle, net=config.net, metrics=context.metrics)

    async def poll_forever(self) -> None:
        """Looks after deadlines, reasons and metrics; answers that a message makes due go out with that message."""
        while True:
            await asyncio.sleep(POLL_S)
            for name, table in self._tables.items():
                self._poll(name)
                for token, reason in table.reasons():
                    (token.ticket if isinstance(token, _Pending) else token).reason = reason
                self._measure(name, table)
            self.keeper.say_news()

    def _handle(self, ticket: Ticket) -> None:
        match ticket.message:
            case Hello(role="learner") as hello:
                self._greet_learner(ticket, hello)
            case Hello() as hello:
                self._greet_env(ticket, hello)
            case Insert() as insert:
                self._insert(ticket, insert)
            case Sample() as sample:
                self._check_learner(ticket)
                self._table(sample.table).sample(sample.n, sample.version, ticket)
                self._poll(sample.table)
            case UpdatePriorities() as update:
                self._check_learner(ticket)
                self._update(update)
                ticket.reply(Ok())
            case Finish() as finish:
                self._check_learner(ticket)
                self._finish(ticket, finish)
            case other:
                raise ProtocolError(f"a replay-server answers no {type(other).__name__}", "see docs/protocol.md")

    def _check_learner(self, ticket: Ticket) -> None:
        if ticket.client.hello.life != self._learner:
            raise ProtocolError(f"{ticket.client.hello.name} is not the learner", "run one learner per job")

    def _greet_env(self, ticket: Ticket, hello: Hello) -> None:
        if hello.spec is None:
            raise ProtocolError(f"{hello.name} says Hello without a spec", "send the environment's spec")
        spec = EnvSpec.from_wire(hello.spec)
        if self._spec is not None and spec != self._spec:
            text = f"{hello.name} runs {spec}, {self._spec_of} runs {self._spec}"
            raise ProtocolError(text, "run one environment on every env-server")
        self._spec, self._spec_of = spec, hello.name
        for table in self._tables.values():
            for slot, life in hello.streams:
                table.join(slot, life)
        ticket.welcome()
        if self._learner_hello is not None:
            self._learner_hello.welcome(spec.to_wire())
            self._learner_hello = None
        self._context.health.ready = True

    def _greet_learner(self, ticket: Ticket, hello: Hello) -> None:
        if hello.life != self._learner:
            self._learner = hello.life
            self._ledger.repeat_all()
            for table in self._tables.values():
                table.learner_gone()
        if self._spec is None:
            ticket.reason = "no env-server has said what its environment is"
            self._learner_hello = ticket
        else:
            ticket.welcome(self._spec.to_wire())

    def _insert(self, ticket: Ticket, insert: Insert) -> None:
        if (insert.slot, insert.life) not in ticket.client.hello.streams or self._spec is None:
            raise ProtocolError(f"stream {insert.slot!r} is none of {ticket.client.hello.name}'s", "name it in Hello")
        tables = [(name, self._table(name)) for name in dict.fromkeys(insert.tables)]
        if not tables:
            raise ProtocolError("an Insert for no table", "name at least one in rollout.tables")
        check_unroll(insert.arrays, self._spec)
        unroll = Unroll(insert.slot, insert.life, insert.number, insert.first_env, insert.arrays)
        for _, table in tables:
            table.check(unroll)
        pending = _Pending(ticket, insert, len(tables))
        for name, table in tables:
            if table.insert(unroll, pending):
                self._count(insert)
            self._poll(name)

    def _update(self, update: UpdatePriorities) -> None:
        table = self._rings.get(update.table)
        if table is None:
            raise ProtocolError(f"table {update.table!r} has no priorities", "send none to this table")
        # Keys of an earlier life may name other items now.
        table.update(update.arrays, stale=update.life != self.server.life)

    def _count(self, insert: Insert) -> None:
        self._ledger.record(insert.slot, insert.life, (insert.number, insert.steps, insert.frames), insert.arrays)

    def _poll(self, name: str) -> None:
        now = time.monotonic()
        # Nobody was late by the time in which this process itself was stopped.
        self._stopped_s += max(0.0, now - self._polled - 10 * POLL_S)
        self._polled = now
        for answer in self._tables[name].poll(now - self._stopped_s):
            self._answer(name, answer)

    def _answer(self, name: str, answer: Answer) -> None:
        if not isinstance(answer, Drawn):
            pending: _Pending = answer.token
            self._count(pending.insert)
            pending.left -= 1
            pending.min_version = max(pending.min_version, answer.min_version)
            if pending.left == 0:
                pending.ticket.reply(Inserted(pending.min_version))
            return
        if answer.missing:
            self._context.health.say(
                f"the batch goes without {', '.join(answer.missing)}: no unroll within "
                f"{self._context.config.replay.group_deadline_s:g} s (replay.group_deadline_s)"
            )
        arrays = self._ledger.report() | (answer.arrays or {})
        arrays["origins"] = np.array([(u.life, u.number) for u in answer.unrolls], np.int64).reshape(-1, 2)
        arrays |= {f"{i}/{key}": array for i, u in enumerate(answer.unrolls) for key, array in u.arrays.items()}
        table = self._tables[name]
        answer.token.reply(Batch(len(answer.unrolls), table.size, table.mass, table.discarded, answer.missing, arrays))

    def _finish(self, ticket: Ticket, finish: Finish) -> None:
        for name, table in self._tables.items():
            for answer in table.finish():
                self._answer(name, answer)
        self._ledger.repeat_all()  # the learner reads no more of the batches on their way to it
        ticket.reply(Finished(self._ledger.report()))
        self.server.finish(finish.reason)
        self.finished.set()

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            raise ProtocolError(f"no table {name!r}", f"replay.tables has {', '.join(self._tables)}")
        return self._tables[name]

    def _measure(self, name: str, table: Table) -> None:
        """Brings the metrics up to the table's own counts."""
        m = self._metrics
        ring = self._rings.get(name)  # a fifo table has zeros: a panel without data looks broken
        counts = {m.inserts: table.inserts, m.samples: table.samples, m.discarded: table.discarded}
        counts[m.stale], counts[m.spoilt] = (ring.stale, ring.spoilt) if ring else (0, 0)
        totals: dict[Counter, float] = {counter.labels(name): count for counter, count in counts.items()}
        totals |= {m.blocked.labels(name, side): seconds for side, seconds in table.blocked_seconds.items()}
        m.ahead.labels(name).set(ring.ahead if ring else 0)
        for counter, total in totals.items():
            counter.inc(total - self._counted.get(counter, 0))
            self._counted[counter] = total
        m.items.labels(name).set(table.size)
        m.bytes.labels(name).set(table.nbytes)
        m.queue_depth.labels(name).set(table.parked)
        m.ratio.labels(name).set(table.samples / table.inserts if table.inserts else 0.0)


def make_table(name: str, config: Config, shard: int = 0) -> Table:
    """Gives the table that `replay.tables.<name>` describes; each `shard` draws numbers of its own."""
    table = config.replay.tables[name]
    if table.kind == "fifo":
        return FifoTable(table.capacity, config.replay.max_policy_lag, config.replay.group_deadline_s)
    return make_ring(name, config, shard)


async def run(context: Context) -> None:
    """Serves until the learner says that the job is done, or the service is told to stop."""
    replay = ReplayServer(context)

    async def until_finished() -> None:
        await replay.finished.wait()
        await replay.server.drained(context.config.net.linger_s)
        context.stopping.set()

    try:
        await until_stopped(context, [replay.poll_forever(), until_finished(), replay.keeper.write_forever()])
        await replay.keeper.write_last()
    finally:
        replay.server.close()
