"""The learner-server: fetches batches, trains, serves weights, keeps the experiment's log and checkpoints."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.errors import Finished as JobFinished
from common.errors import HeadraceError, ProtocolError
from common.messages import (
    PROTOCOL,
    Batch,
    Finish,
    Finished,
    GetWeights,
    Hello,
    NotModified,
    Sample,
    Weights,
    Welcome,
)
from common.metrics import LearnerMetrics
from common.rl.algorithms.base import NonFiniteUpdate
from common.service import Context, connect
from common.transport.client import Client
from common.transport.server import Server, Ticket
from common.types import Arrays, EnvSpec, make_version
from services.learner_server.checkpoint import Checkpoints
from services.learner_server.logger import Logger
from services.learner_server.staging import split, stage
from services.learner_server.tally import Tally
from services.learner_server.trainer import Trainer, Update

log = logging.getLogger("headrace.learner")

LONG_POLL_S = 20.0


class WeightsServer:
    """Answers GetWeights with the newest weights, as soon as there are newer ones than the asker has."""

    def __init__(self, context: Context) -> None:
        self._parked: list[Ticket] = []
        self._weights: Weights | None = None
        self.server = Server(context.config.net.weights, self._handle, net=context.config.net, metrics=context.metrics)

    def publish(self, trainer: Trainer) -> None:
        """Makes the trainer's weights the newest, and answers who waits for them."""
        arrays = {"weights": trainer.weights()}
        env, policy = trainer.env.to_wire(), trainer.policy.spec.to_wire()
        self._weights = Weights(trainer.version, env, policy, trainer.layout, {}, arrays)
        parked, self._parked = self._parked, []
        for ticket in parked:
            ticket.reply(self._weights)

    def _handle(self, ticket: Ticket) -> None:
        match ticket.message:
            case Hello():
                ticket.reply(Welcome(PROTOCOL, self.server.life))
            case GetWeights(have=have):
                if self._weights is not None and self._weights.version > have:
                    ticket.reply(self._weights)
                    return
                ticket.reason = "the learner has no newer weights"
                self._parked.append(ticket)
                asyncio.get_running_loop().call_later(LONG_POLL_S, self._end_poll, ticket, have)
            case other:
                raise ProtocolError(f"a learner-server does not answer {type(other).__name__}", "see docs/protocol.md")

    def _end_poll(self, ticket: Ticket, have: int) -> None:
        if ticket in self._parked:
            self._parked.remove(ticket)
            ticket.reply(NotModified(have))


class Learner:
    """One job's training, from the environment's spec to its last checkpoint."""

    def __init__(self, context: Context, run_dir: Path, weights: WeightsServer, replay: Client) -> None:
        config = context.config
        self._context = context
        self._config = config
        self._weights = weights
        self._replay = replay
        self._metrics = _metrics(context, run_dir)
        self._run_dir = run_dir
        self._tally = Tally(config.stop)
        self._checkpoints = Checkpoints(run_dir, config.learner.checkpoint.keep)
        self._logger = Logger(run_dir)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trainer")
        self._best = -math.inf
        self._scalars: dict[str, float] = {}
        self._lag = (0.0, 0)
        self._synchronous = config.synchronous
        self._updates = self._ahead = 0
        self._batches: asyncio.Queue[Batch] = asyncio.Queue(config.learner.prefetch)
        self._started = self._logged = self._saved = time.monotonic()

    async def train(self) -> None:
        """Trains until a stop condition holds or the service is told to stop; either way a checkpoint is left."""
        try:
            welcome = await self._or_stop(self._replay.welcome())
        except JobFinished:
            self._conclude()
            return
        if welcome is None:
            return
        trainer = Trainer(self._config, EnvSpec.from_wire(welcome.spec), self._checkpoints.next_ordinal())
        self._resume(trainer)
        self._weights.publish(trainer)
        self._context.health.ready = True
        self._started = self._logged = self._saved = time.monotonic()
        self._elapsed_before = self._tally.seconds
        self._updates = trainer.updates
        fetcher = None if self._synchronous else asyncio.create_task(self._prefetch(trainer.ordinal))
        try:
            while (outcome := self._outcome()) is None and not self._context.stopping.is_set():
                next_batch = self._fetch(trainer.version) if self._synchronous else self._next(fetcher)
                batch = await self._or_stop(next_batch, self._seconds_left())
                if batch is not None:
                    await self._learn(trainer, batch)
        finally:
            if fetcher is not None:
                fetcher.cancel()
        await self._end(trainer, outcome)

    def _outcome(self) -> str | None:
        self._tally.seconds = self._elapsed_before + time.monotonic() - self._started
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

    async def _fetch(self, version: int) -> Batch:
        """Asks for the batch that `version` will train on."""
        learner = self._config.learner
        batch: Batch = await self._replay.request(Sample(learner.table, learner.batch, version))
        return batch

    async def _prefetch(self, ordinal: int) -> None:
        """Fetches ahead; each batch is for the version that those before it lead to."""
        while True:
            batch = await self._fetch(make_version(ordinal, self._updates + self._ahead))
            self._ahead += 1
            await self._batches.put(batch)
            self._metrics.queue_depth.set(self._batches.qsize())

    async def _next(self, fetcher: asyncio.Task[None] | None) -> Batch:
        """Gives the next prefetched batch; a fetcher that failed fails here."""
        assert fetcher is not None
        getter = asyncio.ensure_future(self._batches.get())
        try:
            await asyncio.wait({getter, fetcher}, return_when=asyncio.FIRST_COMPLETED)
            if not getter.done():
                fetcher.result()
            return await getter
        finally:
            getter.cancel()

    async def _learn(self, trainer: Trainer, batch: Batch) -> None:
        self._metrics.episodes.inc(self._tally.merge(batch.arrays))
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        parts = self._tally.untrained(batch.arrays["origins"], split(batch.arrays, batch.unrolls))
        try:
            if not parts:
                return
            update = await loop.run_in_executor(self._pool, self._update, trainer, parts, self._tally.progress())
        except NonFiniteUpdate as error:
            self._metrics.skipped.inc()
            self._context.health.say(f"update {trainer.updates} skipped: {error}")
            if self._config.learner.on_nan == "stop":
                raise
            return
        finally:
            self._updates, self._ahead = trainer.updates, max(0, self._ahead - 1)
        self._weights.publish(trainer)
        self._metrics.update_seconds.observe(time.perf_counter() - started)
        self._account(trainer, update)
        if time.monotonic() - self._logged >= self._config.learner.log_s:
            self._log(trainer.updates)
        if time.monotonic() - self._saved >= self._config.learner.checkpoint.interval_s:
            await loop.run_in_executor(self._pool, self._save, trainer)

    @staticmethod
    def _update(trainer: Trainer, parts: list[Arrays], progress: float) -> Update:
        return trainer.update(stage(parts), progress)

    def _account(self, trainer: Trainer, update: Update) -> None:
        tally, m = self._tally, self._metrics
        tally.trained_steps += update.steps
        self._scalars, self._lag = update.scalars, (update.lag_mean, update.lag_max)
        m.updates.inc()
        m.trained_steps.inc(update.steps)
        m.policy_lag.observe(update.lag_mean)
        m.policy_lag_max.set(update.lag_max)
        m.version.set(trainer.updates)
        m.env_steps.set(tally.steps)
        m.env_frames.set(tally.frames)
        m.episode_return.set(tally.episode_return)
        m.episode_length.set(tally.episode_length)
        m.progress.set(tally.progress())
        m.queue_depth.set(self._batches.qsize())
        for name, value in update.scalars.items():
            m.loss.labels(name).set(value)

    def _row(self, updates: int) -> dict[str, float]:
        tally = self._tally
        return {
            "seconds": tally.seconds,
            "steps": tally.steps,
            "frames": tally.frames,
            "updates": updates,
            "trained_steps": tally.trained_steps,
            "episodes": tally.episodes,
            "episode_return": tally.episode_return,
            "episode_length": tally.episode_length,
            "policy_lag": self._lag[0],
            "policy_lag_max": self._lag[1],
        }

    def _log(self, updates: int) -> None:
        self._logged = time.monotonic()
        self._logger.write(self._row(updates), self._scalars)
        disk = shutil.disk_usage(self._run_dir)
        self._metrics.disk_free.set(disk.free)
        self._metrics.disk_size.set(disk.total)

    def _save(self, trainer: Trainer) -> None:
        self._saved = time.monotonic()
        best = self._tally.episode_return > self._best
        if best:
            self._best = self._tally.episode_return
        state = {
            "protocol": PROTOCOL,
            "env": trainer.env.to_wire(),
            "trainer": trainer.state_dict(),
            "tally": self._tally.state_dict(),
            "best": self._best if math.isfinite(self._best) else None,
        }
        self._checkpoints.save(state, trainer.updates, best)
        self._metrics.checkpoints.inc()

    def _resume(self, trainer: Trainer) -> None:
        state = self._checkpoints.load_latest()
        if state is None:
            return
        if EnvSpec.from_wire(state["env"]) != trainer.env:
            raise HeadraceError(
                f"the checkpoint is for {state['env']}, the env-servers run {trainer.env.to_wire()}",
                "resume with the environment of the run",
            )
        trainer.load_state_dict(state["trainer"])
        self._tally.load_state_dict(state["tally"])
        self._best = -math.inf if state["best"] is None else state["best"]
        self._context.health.say(f"resumes after update {trainer.updates}, {self._tally.steps} steps")

    async def _end(self, trainer: Trainer, outcome: str | None) -> None:
        # First: a learner that is killed from here on leaves a job that is as good as finished.
        self._save(trainer)
        if outcome is not None:
            finish = self._replay.request(Finish(_goal(outcome)))
            finished: Finished | None = await self._or_stop(finish, self._config.net.deadline_s)
            if finished is None:
                self._context.health.say("the replay-server has not confirmed the end of the job")
            else:
                self._tally.merge(finished.arrays)
                self._save(trainer)
        if self._scalars:
            self._log(trainer.updates)
        self._write_result(outcome or "stopped", trainer.updates)
        if outcome is not None:
            self._weights.server.finish(_goal(outcome))
            await self._weights.server.drained(self._config.net.linger_s)
        self._pool.shutdown()

    def _conclude(self) -> None:
        """Ends a job that the replay-server says is finished: ours, if the newest checkpoint says so too."""
        state = self._checkpoints.load_latest()
        if state is not None:
            self._tally.load_state_dict(state["tally"])
        outcome = self._tally.outcome()
        if state is None or outcome is None:
            raise HeadraceError("the replay-server has finished another job", "start a new replay-server")
        self._write_result(outcome, int(state["trainer"]["updates"]))

    def _write_result(self, outcome: str, updates: int) -> None:
        row = self._row(updates)
        streams = self._tally.state_dict()["streams"]
        self._logger.finish({"outcome": outcome, **row, "finished_at": time.time(), "streams": streams})
        log.info("%s: %s", outcome, {name: round(value, 3) for name, value in row.items()})


def _goal(outcome: str) -> str:
    return f"the learner has reached its goal: {outcome}"


def _metrics(context: Context, run_dir: Path) -> LearnerMetrics:
    """Gives the learner's metrics with what is known of the job before it starts."""
    metrics, config = LearnerMetrics(context.registry), context.config
    metrics.job.labels(str(config.algorithm.get("name", "?")), config.env.id, str(run_dir)).set(1)
    metrics.policy_lag_bound.set(config.replay.max_policy_lag)
    for setting, limit in config.stop.model_dump(exclude={"episodes"}, exclude_defaults=True).items():
        metrics.stop.labels(setting).set(limit)
    return metrics


async def run(context: Context) -> None:
    """Trains one job to its end, or until the service is told to stop."""
    config = context.config
    run_dir = context.run_dir or Path(config.run.dir) / (config.run.name or time.strftime("by-hand-%m%d-%H%M%S"))
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "config.yaml").exists():
        (run_dir / "config.yaml").write_text(config.to_yaml())
    log.info("run directory %s", run_dir)
    weights = WeightsServer(context)
    replay = connect(context, config.net.experience[0], "replay", max_in_flight=2)
    try:
        await Learner(context, run_dir, weights, replay).train()
    finally:
        weights.server.close()
        replay.close()
