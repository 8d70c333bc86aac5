"""What a job leaves behind and shows: metrics, progress.csv, checkpoints and the result. Trains nothing."""

from __future__ import annotations

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

from common.errors import ConfigError, HeadraceError
from common.messages import PROTOCOL
from common.metrics import LearnerMetrics
from common.service import Context
from common.types import EnvSpec
from services.learner_server.checkpoint import Checkpoints, find, reading
from services.learner_server.logs.logger import Logger
from services.learner_server.tally import Tally
from services.learner_server.trainer import Trainer, Update

log = logging.getLogger("headrace.learner")

_TOTALS = ("seconds", "steps", "frames", "trained_steps", "episodes", "episode_return", "episode_length")


class Record:
    """The record of one job, in `run_dir`; `tally` is what is counted."""

    def __init__(self, context: Context, run_dir: Path) -> None:
        self._context = context
        self._run_dir = run_dir
        self.checkpoints = Checkpoints(run_dir, context.config.learner.checkpoint.keep)
        self._logger = Logger(run_dir)
        self._best = -math.inf
        self._scalars: dict[str, float] = {}
        self._lag = (0.0, 0)
        self._logged = self._saved = time.monotonic()
        self.tally = Tally(context.config.stop)
        self.metrics = _metrics(context, run_dir)

    def account(self, update: Update, updates: int, seconds: float, queue_depth: int) -> None:
        """Takes in one update."""
        tally, m = self.tally, self.metrics
        tally.trained_steps += update.steps
        self._scalars, self._lag = update.scalars, (update.lag_mean, update.lag_max)
        m.update_seconds.observe(seconds / update.made)
        m.updates.inc(update.made)
        m.trained_steps.inc(update.steps)
        m.policy_lag.observe(update.lag_mean)
        m.policy_lag_max.set(update.lag_max)
        m.queue_depth.set(queue_depth)
        self._show(updates)
        for name, value in update.scalars.items():
            m.loss.labels(name).set(value)
        if time.monotonic() - self._logged >= self._context.config.learner.log_s:
            self._log(updates)

    def _show(self, updates: int) -> None:
        tally, m = self.tally, self.metrics
        gauges = (m.version, m.env_steps, m.env_frames, m.episode_return, m.episode_length, m.progress)
        totals = (updates, tally.steps, tally.frames, tally.episode_return, tally.episode_length, tally.progress())
        for gauge, total in zip(gauges, totals, strict=True):
            gauge.set(total)

    @property
    def checkpoint_due(self) -> bool:
        return time.monotonic() - self._saved >= self._context.config.learner.checkpoint.interval_s

    def save(self, trainer: Trainer, again: bool = False) -> None:
        """Writes a checkpoint, and the best too if it is; one `again` is not logged; raises HeadraceError."""
        self._saved = time.monotonic()
        reached = self.tally.episode_return
        best = reached if reached > self._best else self._best
        state = {
            "protocol": PROTOCOL,
            "env": trainer.env.to_wire(),
            "trainer": trainer.state_dict(),
            "tally": self.tally.state_dict(),
            "best": best if math.isfinite(best) else None,
        }
        self.checkpoints.save(state, trainer.updates, best > self._best)
        self._best = best
        self.metrics.checkpoints.inc()
        if not again:
            log.info("checkpoint: %s", ", ".join(f"{k} {v:.4g}" for k, v in self._row(trainer.updates).items()))

    def resume(self, trainer: Trainer) -> None:
        """Brings trainer and tally to where the newest checkpoint has them, if there is one; intervals begin now."""
        self._logged = self._saved = time.monotonic()
        state = self.checkpoints.load_latest()
        if state is None:
            return
        with reading(find(self._run_dir)):
            if EnvSpec.from_wire(state["env"]) != trainer.env:
                text = f"the checkpoint is for {state['env']}, the env-servers run {trainer.env.to_wire()}"
                raise ConfigError(text, "resume with the run's own env.id and env.kwargs")
            trainer.load_state_dict(state["trainer"])
            self.tally.load_state_dict(state["tally"])
            self._best = -math.inf if state["best"] is None else state["best"]
        self._show(trainer.updates)
        self._context.health.say(f"resumes after update {trainer.updates}, {self.tally.steps} steps")

    def over(self) -> dict[str, Any] | None:
        """Gives the newest checkpoint's state if the job had reached its end in it."""
        state = self.checkpoints.load_latest()
        if state is not None:
            with reading(find(self._run_dir)):
                self.tally.load_state_dict(state["tally"])
        return state if self.tally.outcome() else None

    def conclude(self) -> str:
        """Ends a job that is over: ours, if the newest checkpoint says so too. Gives its outcome."""
        state, outcome = self.over(), self.tally.outcome()
        if state is None or outcome is None:
            raise HeadraceError("the replay-server has finished another job", "start a new replay-server")
        self.finish(outcome, int(state["trainer"]["updates"]))
        return outcome

    def finish(self, outcome: str, updates: int) -> None:
        """Writes the last row and the result."""
        if self._scalars:
            self._log(updates)
        row, streams = self._row(updates), self.tally.state_dict()["streams"]
        self._logger.finish({"outcome": outcome, **row, "finished_at": time.time(), "streams": streams})
        log.info("%s: %s", outcome, {name: round(value, 3) for name, value in row.items()})

    def _log(self, updates: int) -> None:
        self._logged = time.monotonic()
        try:
            self._logger.write(self._row(updates), self._scalars)
        except OSError as error:
            self._context.health.say(f"no row in progress.csv or TensorBoard: {error} (make room there)")
        disk = shutil.disk_usage(self._run_dir)
        self.metrics.disk_free.set(disk.free)
        self.metrics.disk_size.set(disk.total)

    def _row(self, updates: int) -> dict[str, float]:
        row = {name: getattr(self.tally, name) for name in _TOTALS} | {"updates": updates}
        return {**row, "policy_lag": self._lag[0], "policy_lag_max": self._lag[1]}


def _metrics(context: Context, run_dir: Path) -> LearnerMetrics:
    """Gives the learner's metrics with what is known of the job before it starts."""
    metrics, config = LearnerMetrics(context.registry), context.config
    metrics.job.labels(str(config.algorithm.get("name", "?")), config.env.id, str(run_dir)).set(1)
    metrics.policy_lag_bound.set(config.replay.max_policy_lag)
    for setting, limit in config.stop.model_dump(exclude={"episodes"}, exclude_defaults=True).items():
        metrics.stop.labels(setting).set(limit)
    return metrics
