"""Drives the search: turns points into configs and back, measures them within the time budget, and picks the winner.

Owns what may be tuned for which kind of job; how it is shown is `view.py`'s business.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import yaml

from common.config import Config, load, validate
from common.errors import ConfigError, HeadraceError
from services.control.bench.pipeline import Measured, Pipeline, open_pipeline
from services.control.bench.report import machine
from services.control.compose import overlay_of
from services.control.monitor import BUSY_SHARE
from services.control.tune.search import Point, Search, Space
from services.control.words import count
from services.env_server.backends import make_backend
from services.replay_server.server import make_table

SEARCH_SHARE = 0.7  # of the budget; what is left is for measuring the best ones again
LARGEST_GROUP = 1 << 15
GROUPS = (1, 2, 3, 4)
UNROLLS = (16, 32, 64, 128)

WORDS = {
    "env": ("env-servers", "in the simulator"),
    "inference": ("inference-servers", "in forward passes"),
    "replay": ("the replay-server", "at work"),
}


class View(Protocol):
    """What shows a tuning while it runs."""

    def measuring(self, tuning: Tuning, point: Point) -> None: ...

    def measured(self, tuning: Tuning, point: Point, rate: float) -> None: ...


def space_of(config: Config) -> Space:
    """Gives the values to choose from on this machine, the job's own among them; raises ConfigError for a job that is
    refused as it is.

    A synchronous job keeps its steps per batch, since they are part of its algorithm, and serves each request alone;
    a job whose table is no fifo keeps its unroll, which its table was laid out for.
    """
    check(config)
    cores = os.cpu_count() or 1
    one = make_backend(config.env, 1, at_least=True)
    agents = one.num_envs
    one.close()
    env, inference, unroll = config.env, config.inference, config.rollout.unroll
    fifo = config.replay.tables[config.learner.table].kind == "fifo"
    batch = env.servers * env.groups * env.envs * unroll if config.synchronous else 0
    return Space(
        envs=_with(env.envs, tuple(agents << k for k in range((LARGEST_GROUP // agents).bit_length()))),
        servers=_with(env.servers, _up_to(cores)),
        inference=_with(inference.servers, _up_to(cores)),
        groups=_with(env.groups, GROUPS),
        merge=(False,) if config.synchronous else (False, True),
        unroll=_with(unroll, UNROLLS) if fifo and not config.synchronous else (unroll,),
        batch=batch,
        runs=partial(_runs, config),
    )


def check(config: Config) -> None:
    """Raises ConfigError where services would refuse a job of these sizes: what is measured has none of its limits."""
    validate(config.model_dump())
    for name in config.replay.tables:
        make_table(name, config)


def _runs(config: Config, point: Point) -> bool:
    try:
        check(at(config, point))
    except ConfigError:
        return False
    return True


def point_of(config: Config) -> Point:
    """Gives where the search starts: the job as it is."""
    env = config.env
    several = env.servers * env.groups > 1
    merge = not config.synchronous and several and config.inference.max_batch > env.envs
    inference = min(config.inference.servers, env.servers * env.groups)
    return Point(env.envs, env.servers, inference, env.groups, merge, config.rollout.unroll)


def at(config: Config, point: Point) -> Config:
    """Gives the job with the sizes of `point`."""
    env = {"envs": point.envs, "servers": point.servers, "groups": point.groups}
    # A pass for all that one inference-server may be asked at once, or for one request.
    requests = point.groups * -(-point.servers // point.inference) if point.merge else 1
    inference: dict[str, int] = {"servers": point.inference}
    if not config.synchronous:
        inference["max_batch"] = point.envs * requests
    return config.model_copy(
        update={
            "env": config.env.model_copy(update=env),
            "inference": config.inference.model_copy(update=inference),
            "rollout": config.rollout.model_copy(update={"unroll": point.unroll}),
        }
    )


@dataclass(slots=True)
class Tuning:
    """One tuning: its job, its search, its time budget, and how busy the roles were at each point."""

    config: Config
    search: Search
    minutes: float
    seconds: float
    began: float = field(default_factory=time.monotonic)
    busy: dict[Point, dict[str, float]] = field(default_factory=dict)

    @property
    def spent(self) -> float:
        """The share of the time budget that is used up."""
        return (time.monotonic() - self.began) / (self.minutes * 60)

    @property
    def left_s(self) -> float | None:
        """The seconds that a measurement may take: what is left, but for the first one, without which there is none."""
        return (1.0 - self.spent) * self.minutes * 60 if self.busy else None

    @property
    def each(self) -> float:
        """The share of the time budget that a measurement takes."""
        return self.spent / max(1, sum(map(len, self.search.rates.values())))


async def tune(tuning: Tuning, view: View) -> None:
    """Measures what the search asks for until it ends or the time is up; `tuning` holds what was found."""
    async with open_pipeline() as pipeline:
        points = tuning.search.points(lambda: tuning.spent > SEARCH_SHARE)
        point = next(points)
        with suppress(StopIteration, TimeoutError):
            while tuning.spent + tuning.each < 1.0 or not tuning.busy:
                view.measuring(tuning, point)
                async with asyncio.timeout(tuning.left_s):
                    measured = await _measure(tuning, pipeline, point)
                tuning.busy[point] = measured.busy
                following = points.send(measured.steps_s)
                view.measured(tuning, point, measured.steps_s)
                point = following


async def _measure(tuning: Tuning, pipeline: Pipeline, point: Point) -> Measured:
    try:
        measured = await pipeline.run(at(tuning.config, point), tuning.seconds)
        if not (measured.steps_s or tuning.busy):
            raise HeadraceError("no step was made while the job was measured", "give it more --seconds")
        return measured
    except ConfigError:
        raise
    except HeadraceError:
        # Sizes that this machine cannot run are no candidates; the job's own, measured first, must run.
        if not tuning.busy:
            raise
        return Measured(0.0, {})


def bottleneck(busy: dict[str, float]) -> str:
    """Says in one sentence which role collecting waits for, from the shares of the time that its processes work."""
    shares = ", ".join(f"{WORDS[role][0]} {share:.0%} {WORDS[role][1]}" for role, share in busy.items())
    role = max(busy, key=lambda name: busy[name], default=None)
    if role is None or busy[role] < BUSY_SHARE:
        return f"No role is the bottleneck of collecting: messages and waiting take most of the time ({shares})."
    return f"The bottleneck of collecting is the {role} role: of their time, {shares}."


def overlay(tuning: Tuning) -> str:
    """Gives the job with its best sizes as the text of a file for `headrace train`."""
    search, best = tuning.search, tuning.search.best
    if best is None:
        raise HeadraceError("nothing was measured", "give it more --minutes")
    config = at(tuning.config, best)
    rate, before = search.rate(best), search.rate(next(iter(search.rates)))
    lines = [
        f"Written by `headrace tune` on {time.strftime('%Y-%m-%d')}, for {machine()}.",
        f"Collecting: {count(rate)} steps/s, {rate / before:.2f} times the {count(before)} of the job as it was; "
        f"{len(search.rates)} setting{'s' if len(search.rates) > 1 else ''} measured.",
        bottleneck(tuning.busy[best]),
        _kept(config),
    ]
    body = yaml.safe_dump(overlay_of(config, load(None, (), {})), sort_keys=False, default_flow_style=None)
    return "".join(f"# {line}\n" for line in lines) + body


def write(tuning: Tuning, path: Path) -> None:
    """Writes the overlay, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(overlay(tuning))
    fresh.replace(path)


def _kept(config: Config) -> str:
    env = config.env
    if config.synchronous:
        steps = env.servers * env.groups * env.envs * config.rollout.unroll
        return f"Synchronous: a batch is still servers * groups * envs * unroll = {steps} steps."
    if config.replay.tables[config.learner.table].kind != "fifo":
        return "The table is no fifo: rollout.unroll and the learner's batch are as they were."
    steps = config.learner.batch * env.envs * config.rollout.unroll
    return f"Asynchronous: a batch of {config.learner.batch} unrolls is {steps} steps now; check that it still learns."


def _with(own: int, values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({own, *values}))


def _up_to(cores: int) -> tuple[int, ...]:
    """Gives 1, 2, 3, 4, 6, 8, 12, 16 … up to the number of cores."""
    values = {1, cores, *(1 << k for k in range(cores.bit_length())), *(3 << k for k in range(cores.bit_length()))}
    return tuple(sorted(value for value in values if value <= cores))
