"""The env-server: groups of environments that ask for actions, step, and insert what they lived through.

A thin shell around `Rollout` and a backend. Imports no torch and holds no weights.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time

import numpy as np

from common.messages import Act, Insert, Inserted
from common.metrics import EnvMetrics
from common.service import Context, connect, first_welcome, until_stopped
from common.transport.client import Client
from common.types import Arrays, PolicySpec, new_life
from services.env_server.backends import make_backend
from services.env_server.backends.stepper import Stepper
from services.env_server.backends.watchdog import Watchdog
from services.env_server.inference import InferenceServers
from services.env_server.rollout import Rollout

log = logging.getLogger("headrace.env")

LAST_INSERT_S = 1.0
_LIFE_BITS = 40


class Group:
    """One stream: a backend, its rollout, and the loop that drives them."""

    def __init__(self, context: Context, index: int, metrics: EnvMetrics, watchdog: Watchdog) -> None:
        config = context.config
        self.slot = f"{context.name}/{index}"
        self.life = new_life()
        self.backend = make_backend(config.env, config.env.envs)
        self.stepper = Stepper(self.backend, self.slot, config.env.groups, watchdog, metrics)
        self.steps = self.frames = self.unrolls = 0
        self._config = config
        self._metrics = metrics
        # Among all groups of the job: it gives the environments their numbers, and the group its replay-server.
        self.number = context.index * config.env.groups + index
        self._first_env = self.number * config.env.envs
        entropy = [config.run.seed, context.index, index, context.life_number]
        self._seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        # Sampling noise is keyed by this number: a restarted group must not live through the same noise again.
        self._step = context.life_number << _LIFE_BITS

    async def collect(self, policy: PolicySpec, inference: InferenceServers, replay: Client) -> None:
        """Collects unrolls until a peer says that the job is finished."""
        rollout = Rollout(self.backend.spec, policy, self._config.rollout.unroll, self.backend.num_envs)
        self.stepper.reset(self._seed, rollout.observation_row())
        rollout.begin()
        min_version = 0
        insert: asyncio.Task[int] | None = None
        try:
            while True:
                while not rollout.complete:
                    await self._advance(rollout, inference, min_version)
                # One Insert in flight: a full table holds its answer back, and so holds this group back.
                if insert is not None:
                    await insert
                insert = asyncio.create_task(self._insert(rollout, rollout.finish(), replay))
                if self._config.synchronous:
                    min_version = await insert
        finally:
            if insert is not None:
                # Counted if the replay-server took it: the streams' totals must agree with the learner's.
                await asyncio.wait([insert], timeout=LAST_INSERT_S)
                insert.cancel()

    async def _advance(self, rollout: Rollout, inference: InferenceServers, min_version: int) -> None:
        asked = time.perf_counter()
        act = Act(self._first_env, self.backend.num_envs, self._step, min_version, rollout.request())
        actions = await inference.request(act)
        action = rollout.act(actions.arrays, actions.version)
        self._metrics.act_seconds.observe(time.perf_counter() - asked)
        rollout.advance(await self.stepper.step(action, rollout.targets()))
        self._step += 1

    async def _insert(self, rollout: Rollout, arrays: Arrays, replay: Client) -> int:
        number, steps, frames = rollout.number, rollout.steps, rollout.frames
        tables = self._config.rollout.tables
        insert = Insert(tables, self.slot, self.life, number, self._first_env, steps, frames, arrays)
        inserted: Inserted = await replay.request(insert)
        self._metrics.unrolls.inc()
        self._metrics.steps.inc(steps - self.steps)
        self._metrics.frames.inc(frames - self.frames)
        self._metrics.episode_return.observe(arrays["episode_returns"])
        self._metrics.episode_length.observe(arrays["episode_lengths"])
        for name, total in self.backend.tallies.items():
            self._metrics.tallies.labels(name, self.slot).set(total)
        self.unrolls, self.steps, self.frames = number, steps, frames
        return inserted.min_version


async def run(context: Context) -> None:
    """Collects until the job is finished, or the service is told to stop."""
    config = context.config
    metrics = EnvMetrics(context.registry)
    if config.env.affinity == "auto":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[context.index % len(cores)]})
    watchdog = Watchdog(config.env.step_deadline_s)
    groups = [Group(context, number, metrics, watchdog) for number in range(config.env.groups)]
    hello = context.hello(groups[0].backend.spec.to_wire(), tuple((group.slot, group.life) for group in groups))
    inference = InferenceServers(context, hello, max_in_flight=len(groups))
    shards = [connect(context, a, "replay", max_in_flight=len(groups), hello=hello) for a in config.net.experience]

    async def collect() -> None:
        # Replay hears of the environment first: the learner, and so inference, wait for its spec.
        await first_welcome(shards)
        policy = await inference.policy()
        context.health.ready = True
        await until_stopped(context, [g.collect(policy, inference, shards[g.number % len(shards)]) for g in groups])

    try:
        await until_stopped(context, [collect()])
    finally:
        for group in groups:
            log.info(
                "stream %s life %d: %d steps and %d frames in %d unrolls inserted",
                *(group.slot, group.life, group.steps, group.frames, group.unrolls),
            )
            if group.backend.tallies:
                log.info("stream %s counted %s", group.slot, json.dumps(dict(group.backend.tallies)))
        inference.close()
        for shard in shards:
            shard.close()
        watchdog.close()
        for group in groups:
            group.stepper.close()
