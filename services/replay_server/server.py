"""The replay-server: messages in, calls on tables, answers out. Knows no algorithm and no torch."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config import Config, TableConfig
from common.errors import ConfigError, ProtocolError
from common.messages import (
    PROTOCOL,
    Batch,
    Finish,
    Finished,
    Hello,
    Insert,
    Inserted,
    Ok,
    Sample,
    UpdatePriorities,
    Welcome,
)
from common.metrics import ReplayMetrics
from common.service import Context, until_stopped
from common.transport.server import Server, Ticket
from common.types import EnvSpec
from services.replay_server import checkpoint
from services.replay_server.fifo import FifoTable
from services.replay_server.ledger import Ledger
from services.replay_server.ring import RingTable
from services.replay_server.unroll import Answer, Drawn, Unroll, check_unroll

log = logging.getLogger("headrace.replay")

POLL_S = 0.1

Table = FifoTable | RingTable


@dataclass(eq=False, slots=True)
class _Pending:
    """An Insert until every table it goes to has stored it."""

    ticket: Ticket
    insert: Insert
    left: int
    counted: bool = False
    min_version: int = 0


class ReplayServer:
    """Feeds tables from Inserts and answers Samples from them."""

    def __init__(self, context: Context) -> None:
        config = context.config
        self._context = context
        self._metrics = ReplayMetrics(context.registry)
        self._tables = {name: make_table(name, config) for name in config.replay.tables}
        self._reported = {name: (0, 0, 0, {"insert": 0.0, "sample": 0.0}) for name in self._tables}
        self._ledger = Ledger()
        self._spec: EnvSpec | None = None
        self._spec_of = ""
        self._learner: int | None = None
        self._learner_hello: Ticket | None = None
        self._rings = {name: table for name, table in self._tables.items() if isinstance(table, RingTable)}
        self._lost = dict.fromkeys(self._rings, 0)
        self._restore()
        self.finished = asyncio.Event()
        self.server = Server(
            config.net.experience[context.index % len(config.net.experience)],
            self._handle,
            net=config.net,
            metrics=context.metrics,
            gone=self._gone,
        )

    async def poll_forever(self) -> None:
        """Looks after deadlines, reasons and metrics; answers that a message makes due go out with that message."""
        while True:
            await asyncio.sleep(POLL_S)
            for name, table in self._tables.items():
                self._poll(name)
                for token, reason in table.reasons():
                    (token.ticket if isinstance(token, _Pending) else token).reason = reason
                self._measure(name, table)

    async def checkpoint_forever(self) -> None:
        """Writes the rings to disk every `replay.checkpoint_s`; each one's requests wait while it is written."""
        while True:
            await asyncio.sleep(self._context.config.replay.checkpoint_s)
            for name, table in self._rings.items():
                state = table.freeze()
                try:
                    await asyncio.to_thread(checkpoint.write, self._path(name), {"time": time.time(), "table": state})
                    table.thaw()
                    self._poll(name)
                    await asyncio.to_thread(checkpoint.commit, self._path(name))
                except OSError as error:
                    table.thaw()
                    self._context.health.say(f"table {name} has no new checkpoint: {error}")

    def _restore(self) -> None:
        """Fills the rings from their checkpoints, saying aloud what they hold."""
        for name, table in self._rings.items() if self._context.config.replay.checkpoint_s else ():
            if (saved := checkpoint.read(self._path(name))) is None:
                continue
            said = "starts empty: its checkpoint was made with other settings"
            if table.restore(saved["table"]):
                said = f"is back with {table.size} items of {table.inserts} steps inserted, as of "
                said += f"{time.time() - saved['time']:.0f} s ago: what came after is lost"
            self._lost[name] = table.lost
            self._context.health.say(f"table {name} {said}")

    def _path(self, name: str) -> Path:
        if self._context.run_dir is None:
            raise ConfigError("replay.checkpoint_s has no run directory to write to", "give --run-dir, or set it to 0")
        return self._context.run_dir / "replay" / str(self._context.index) / name

    def _handle(self, ticket: Ticket) -> None:
        match ticket.message:
            case Hello(role="learner"):
                self._greet_learner(ticket)
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
                raise ProtocolError(f"a replay-server does not answer {type(other).__name__}", "see docs/protocol.md")

    def _check_learner(self, ticket: Ticket) -> None:
        if ticket.client.hello.life != self._learner:
            raise ProtocolError(f"{ticket.client.hello.name} is not the learner", "run one learner per job")

    def _greet_env(self, ticket: Ticket, hello: Hello) -> None:
        if hello.spec is None:
            raise ProtocolError(f"{hello.name} says Hello without a spec", "send the environment's spec")
        spec = EnvSpec.from_wire(hello.spec)
        if self._spec is not None and spec != self._spec:
            raise ProtocolError(
                f"{hello.name} runs {spec}, {self._spec_of} runs {self._spec}",
                "run one environment on every env-server",
            )
        self._spec, self._spec_of = spec, hello.name
        for table in self._tables.values():
            if isinstance(table, FifoTable):
                for slot, life in hello.streams:
                    table.join(slot, life)
        ticket.reply(Welcome(PROTOCOL, self.server.life))
        if self._learner_hello is not None:
            self._learner_hello.reply(Welcome(PROTOCOL, self.server.life, spec.to_wire()))
            self._learner_hello = None
        self._context.health.ready = True

    def _greet_learner(self, ticket: Ticket) -> None:
        hello = ticket.message
        if isinstance(hello, Hello) and hello.life != self._learner:
            self._learner = hello.life
            self._ledger.repeat_all()
            for table in self._tables.values():
                table.learner_gone()
        if self._spec is None:
            ticket.reason = "no env-server has said what its environment is"
            self._learner_hello = ticket
        else:
            ticket.reply(Welcome(PROTOCOL, self.server.life, self._spec.to_wire()))

    def _gone(self, hello: Hello) -> None:
        if hello.role == "learner":
            self._learner_hello = None

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
                self._count(pending)
            self._poll(name)

    def _update(self, update: UpdatePriorities) -> None:
        table = self._rings.get(update.table)
        if table is None:
            raise ProtocolError(f"table {update.table!r} has no priorities", "send none to this table")
        # Keys of an earlier life may name other items now.
        table.update(update.arrays, stale=update.life != self.server.life)

    def _count(self, pending: _Pending) -> None:
        if not pending.counted:
            pending.counted = True
            insert = pending.insert
            self._ledger.record(insert.life, (insert.number, insert.steps, insert.frames), insert.arrays)

    def _poll(self, name: str) -> None:
        for answer in self._tables[name].poll(time.monotonic()):
            self._answer(name, answer)

    def _answer(self, name: str, answer: Answer) -> None:
        if not isinstance(answer, Drawn):
            pending: _Pending = answer.token
            self._count(pending)
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
        arrays = self._ledger.report()
        arrays["origins"] = np.array([(u.life, u.number) for u in answer.unrolls], np.int64).reshape(-1, 2)
        if answer.arrays is not None:
            arrays.update(answer.arrays)
        for i, unroll in enumerate(answer.unrolls):
            arrays.update({f"{i}/{key}": array for key, array in unroll.arrays.items()})
        table = self._tables[name]
        answer.token.reply(Batch(len(answer.unrolls), table.size, table.mass, table.discarded, answer.missing, arrays))

    def _finish(self, ticket: Ticket, finish: Finish) -> None:
        for name, table in self._tables.items():
            for answer in table.finish():
                self._answer(name, answer)
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
        inserts, samples, discarded, blocked = self._reported[name]
        m.inserts.labels(name).inc(table.inserts - inserts)
        m.samples.labels(name).inc(table.samples - samples)
        m.discarded.labels(name).inc(table.discarded - discarded)
        for side, seconds in table.blocked_seconds.items():
            m.blocked.labels(name, side).inc(seconds - blocked[side])
        self._reported[name] = (table.inserts, table.samples, table.discarded, dict(table.blocked_seconds))
        m.items.labels(name).set(table.size)
        m.bytes.labels(name).set(table.nbytes)
        m.queue_depth.labels(name).set(table.parked)
        m.ratio.labels(name).set(table.samples / table.inserts if table.inserts else 0.0)
        if isinstance(table, RingTable) and table.lost > self._lost[name]:
            self._lost[name] = table.lost
            self._context.health.say(f"table {name} has lost {table.lost} steps that came after its checkpoint")


def make_table(name: str, config: Config) -> Table:
    """Gives the table that `replay.tables.<name>` describes."""
    table: TableConfig = config.replay.tables[name]
    if table.kind == "fifo":
        return FifoTable(table.capacity, config.replay.max_policy_lag, config.replay.group_deadline_s)
    _check(f"replay.tables.{name}", table, config)
    return RingTable(
        name,
        table,
        unroll=config.rollout.unroll,
        largest_insert=config.rollout.unroll * config.env.envs,
        largest_sample=config.learner.batch,
        seed=config.run.seed,
    )


def _check(key: str, table: TableConfig, config: Config) -> None:
    """Raises ConfigError for a ring whose items could never be made."""
    unroll = config.rollout.unroll
    if table.n_step > 1 and table.discount is None:
        raise ConfigError(f"{key}.n_step={table.n_step} without a discount", f"set {key}.discount to the algorithm's")
    if table.sequence and (table.period == 0 or table.period % unroll):
        raise ConfigError(
            f"{key}.period={table.period} is no multiple of rollout.unroll={unroll}",
            f"set it to {max(1, table.period // unroll) * unroll}: a state stands at the start of each unroll only",
        )
    longest, envs = max(table.sequence, table.n_step), config.env.envs * config.env.groups * config.env.servers
    needed = -(-(longest + 2 * unroll) * envs // config.replay.servers)
    if longest > 1 and table.capacity < needed:
        raise ConfigError(
            f"{key}.capacity={table.capacity} would deadlock: items of {longest} steps are overwritten before they end",
            f"set it to at least {needed}",
        )


async def run(context: Context) -> None:
    """Serves until the learner says that the job is done, or the service is told to stop."""
    replay = ReplayServer(context)

    async def until_finished() -> None:
        await replay.finished.wait()
        await replay.server.drained(context.config.net.linger_s)
        context.stopping.set()

    try:
        checkpoints = [replay.checkpoint_forever()] if context.config.replay.checkpoint_s else []
        await until_stopped(context, [replay.poll_forever(), until_finished(), *checkpoints])
    finally:
        replay.server.close()
