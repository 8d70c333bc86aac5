"""The learner-server: fetches batches, trains, publishes weights, and ends the job. A thin shell around `Trainer`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import ConfigError, HeadraceError, PeerLost
from common.errors import Finished as JobFinished
from common.files import write_whole
from common.messages import Finish, Finished
from common.rl.algorithms.base import NonFiniteUpdate
from common.service import Context, connect, first_welcome
from common.transport.client import Client
from common.types import Arrays, EnvSpec
from services.learner_server.feed import Draw, Feed
from services.learner_server.lock import claim
from services.learner_server.record import Record
from services.learner_server.replicas.group import Replicas
from services.learner_server.staging import mix, split, stage
from services.learner_server.trainer import Trainer, Update
from services.learner_server.weights import WeightsServer

log = logging.getLogger("headrace.learner")

MAX_SKIPPED = 100  # updates in a row, after which no better one is waited for


class Learner:
    """One job's training, from the environment's spec to its last checkpoint."""

    def __init__(self, context: Context, run_dir: Path, weights: WeightsServer, shards: Sequence[Client]) -> None:
        self._context, self._config = context, context.config
        self._weights, self._shards = weights, shards
        self._record = Record(context, run_dir)
        self.replicas = Replicas(context.config, run_dir)
        self._tally = self._record.tally
        self._kind = self._config.replay.tables[self._config.learner.table].kind
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trainer")
        self._started, self._skipped = 0.0, 0

    async def train(self) -> None:
        """Trains until a stop condition holds or the service is told to stop; either way a checkpoint is left."""
        # A life before this one may have ended the job, and its peers have gone.
        over = self._record.over() is not None
        try:
            welcome = await self._or_stop(first_welcome(self._shards), self._config.net.deadline_s if over else None)
        except JobFinished:
            over, welcome = True, None
        if welcome is None:
            if over and not self._context.stopping.is_set():
                await self._dismiss(self._record.conclude())
            return
        trainer = Trainer(self._config, EnvSpec.from_wire(welcome.spec), self._record.checkpoints.next_ordinal())
        self._record.resume(trainer)
        await asyncio.get_running_loop().run_in_executor(self._pool, self.replicas.form, trainer)
        self._publish(trainer)
        self._context.health.ready = True
        self._started = time.monotonic() - self._tally.seconds
        feed = Feed(self._config, self._shards, trainer.ordinal, trainer.updates, trainer.stage)
        try:
            while (outcome := self._outcome()) is None and not self._context.stopping.is_set():
                draw = await self._or_stop(feed.next(), self._seconds_left())
                if draw is not None:
                    await self._learn(trainer, feed, draw)
        finally:
            await feed.close()
        await self._end(trainer, outcome)

    def _outcome(self) -> str | None:
        self._tally.seconds = time.monotonic() - self._started
        return self._tally.outcome()

    def _seconds_left(self) -> float | None:
        limit = self._config.stop.seconds
        return max(0.0, limit - self._tally.seconds) if limit else None

    async def _or_stop(self, work: Any, timeout_s: float | None = None) -> Any:
        """Gives what `work` gives, or None if the service is told to stop first, or after `timeout_s`."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._context.stopping.wait())
        try:
            await asyncio.wait({task, stop}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stop.cancel()

    async def _learn(self, trainer: Trainer, feed: Feed, draw: Draw) -> None:
        told = [part.batch.arrays for part in (*draw.online, *draw.replayed)]
        self._record.metrics.episodes.inc(self._tally.merge(*told))
        batches = [part.batch for part in draw.online]
        unrolls = [u for b in batches for u in self._tally.untrained(b.arrays["origins"], split(b.arrays, b.unrolls))]
        if self._kind == "fifo" and not unrolls:
            feed.trained(trainer.updates)
            return
        began, loop = time.perf_counter(), asyncio.get_running_loop()
        try:
            update = await loop.run_in_executor(self._pool, self._update, trainer, draw, unrolls)
        except NonFiniteUpdate as error:
            self._skip(trainer.updates, error)
            return
        finally:
            feed.trained(trainer.updates)
        for skipped in update.skipped:
            self._skip(trainer.updates, skipped)
        if trainer.updates % self._config.learner.publish_every < update.made:
            self._publish(trainer)
        if update.priorities is not None and self._kind == "prioritized":
            await feed.prioritize(draw, update.priorities)
        if update.made:
            self._skipped = 0
            self._record.account(update, trainer.updates, time.perf_counter() - began, feed.depth)
        if self._record.checkpoint_due:
            await loop.run_in_executor(self._pool, self.replicas.compare, trainer)
            try:
                await loop.run_in_executor(self._pool, self._record.save, trainer)
            except HeadraceError as error:
                self._context.health.say(str(error))

    def _skip(self, update: int, error: NonFiniteUpdate) -> None:
        self._record.metrics.skipped.inc()
        self._context.health.say(f"update {update} skipped: {error}")
        self._skipped += 1
        # Another life would only go back to the last checkpoint: the exit code says not to start one.
        if self._config.learner.on_nan == "stop":
            raise ConfigError(f"learner.on_nan=stop: {error.message}", error.remedy)
        if self._skipped == MAX_SKIPPED:
            text = f"{MAX_SKIPPED} updates in a row were skipped, the last since {error.message}"
            raise ConfigError(text, error.remedy)

    def _update(self, trainer: Trainer, draw: Draw, unrolls: list[Arrays]) -> Update:
        if self._kind != "fifo":
            return trainer.update_in_turn(draw.staged, self._tally.progress())
        arrays = mix(unrolls, [part.batch.arrays for part in draw.replayed]) if draw.replayed else stage(unrolls)
        return self.replicas.update(trainer, arrays, self._tally.progress())

    def _publish(self, trainer: Trainer) -> None:
        self._weights.publish(trainer.weights(self._tally.steps, self._tally.progress()))

    async def _end(self, trainer: Trainer, outcome: str | None) -> None:
        # First: a learner that is killed from here on leaves a job that is as good as finished.
        await asyncio.get_running_loop().run_in_executor(self._pool, self.replicas.compare, trainer)
        await self._save(trainer)
        if outcome is not None:
            for shard in self._shards:
                finished: Finished | None = None
                with suppress(PeerLost):
                    finished = await self._or_stop(shard.request(Finish(_goal(outcome))), self._config.net.deadline_s)
                if finished is None:
                    self._context.health.say(f"the {shard.peer} has not confirmed the end of the job")
                else:
                    self._tally.merge(finished.arrays)
            await self._save(trainer, again=True)
        self._record.finish(outcome or "stopped", trainer.updates)
        if outcome is not None:
            await self._dismiss(outcome)
        self._pool.shutdown()

    async def _save(self, trainer: Trainer, again: bool = False) -> None:
        """Saves what the job ends with; where there is no room it waits for some, or to be told to stop."""
        while True:
            try:
                return self._record.save(trainer, again)
            except HeadraceError as error:
                if self._context.stopping.is_set():
                    raise
                self._context.health.say(str(error))
                await self._or_stop(asyncio.sleep(2.0))

    async def _dismiss(self, outcome: str) -> None:
        self._weights.server.finish(_goal(outcome))
        await self._weights.server.drained(self._config.net.linger_s)


def _goal(outcome: str) -> str:
    return f"the learner has reached its goal: {outcome}"


async def run(context: Context) -> None:
    """Trains one job to its end, or until the service is told to stop."""
    config = context.config
    run_dir = context.run_dir or Path(config.run.dir) / (config.run.name or time.strftime("by-hand-%m%d-%H%M%S"))
    with claim(run_dir):
        if not (run_dir / "config.yaml").exists():
            write_whole(run_dir / "config.yaml", config.to_yaml())
        log.info("run directory %s", run_dir)
        weights = WeightsServer(context)
        addresses = config.net.experience
        # Besides the Samples, priorities are under way.
        shards = [connect(context, a, "replay", max_in_flight=16, replaceable=len(addresses) > 1) for a in addresses]
        try:
            learner = Learner(context, run_dir, weights, shards)
            with learner.replicas:
                await learner.train()
        finally:
            weights.server.close()
            for shard in shards:
                shard.close()
