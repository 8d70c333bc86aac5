"""Message rate of one inference-server and one replay-server under 1 to 512 connections, and what a message costs them.

Each connection is a simulated env-server of one group with environments that take no time. It asks for actions, and
inserts a ready-made unroll after every UNROLL answers. All of them live in one process, whose own work is part of what
is measured. This script also stands in for the learner and drops what it is sent.

    python -m benchmarks.connections [--seconds 5] [--repeat 3]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq

from benchmarks.page import spread
from common.config import Config, load
from common.errors import HeadraceError
from common.messages import Act, Insert, Sample
from common.service import connect, make_context
from common.types import Arrays, EnvSpec, PolicySpec, new_life
from services.control.bench.pipeline import cpu_s
from services.control.compose import Process, local_plan
from services.env_server.backends import make_backend
from services.env_server.rollout import Rollout
from services.learner_server.trainer import Trainer
from services.learner_server.weights import WeightsServer

COUNTS = (1, 16, 128, 512)
ENVS, UNROLL = 8, 32


@dataclass(frozen=True, slots=True)
class Load:
    """What each connection sends: an Act for `envs` environments of `floats` float32 each, unrolls of UNROLL steps."""

    connections: int
    envs: int = ENVS
    floats: int = 4

    @property
    def act_bytes(self) -> int:
        return self.envs * self.floats * 4


@dataclass(frozen=True, slots=True)
class Measured:
    """Messages answered per second, and seconds of processor per message: by server, and by client per Act."""

    acts_s: float
    inserts_s: float
    inference_s: float
    replay_s: float
    client_s: float

    @property
    def cores(self) -> tuple[float, float, float]:
        """Processor seconds per second: of the inference-server, the replay-server and all simulated env-servers."""
        return self.acts_s * self.inference_s, self.inserts_s * self.replay_s, self.acts_s * self.client_s


class Tally:
    """Requests answered so far."""

    acts = 0
    inserts = 0


def start(process: Process) -> subprocess.Popen[bytes]:
    with process.log.open("wb") as log:
        return subprocess.Popen([sys.executable, *process.argv], stdout=log, stderr=log)


def job(load_: Load) -> Config:
    """Gives the config of one inference-server and one replay-server for such connections."""
    overrides = [
        "env.id=headrace/Null-v0",
        f"env.kwargs={{shape: [{load_.floats}]}}",
        f"env.envs={load_.envs}",
        "network.hidden=[16,16]",
        f"rollout.unroll={UNROLL}",
        "replay.max_policy_lag=1000000",
        "replay.tables.experience.capacity=64",
        "learner.batch=1",
    ]
    return load(None, overrides)


async def _env_server(config: Config, spec: EnvSpec, number: int, tally: Tally) -> None:
    context, envs = make_context(config, "env", index=number), config.env.envs
    slot, life = f"{context.name}/0", new_life()
    hello = context.hello(spec.to_wire(), ((slot, life),))
    inference = connect(context, config.net.act[0], "inference", max_in_flight=1, hello=hello)
    replay = connect(context, config.net.experience[0], "replay", max_in_flight=1, hello=hello)
    try:
        await replay.welcome()
        policy = PolicySpec.from_wire((await inference.welcome()).spec)
        rollout = Rollout(spec, policy, UNROLL, envs)
        row, unroll = rollout.request(), _unroll(rollout)
        for step in range(1 << 40):
            await inference.request(Act(number * envs, envs, step, 0, row))
            tally.acts += 1
            if step % UNROLL == UNROLL - 1:
                n = (step + 1) // UNROLL
                steps = n * UNROLL * envs
                await replay.request(Insert(("experience",), slot, life, n, number * envs, steps, steps, unroll))
                tally.inserts += 1
    finally:
        inference.close()
        replay.close()


def _unroll(rollout: Rollout) -> Arrays:
    """Gives a whole unroll of zeros, all of its steps valid and as new as can be."""
    arrays = {name: np.zeros_like(value) for name, value in rollout.finish().items()}
    arrays["valid"][:] = True
    arrays["versions"][:] = 1 << 40
    return arrays


async def _measure(
    config: Config, count: int, seconds: float, children: dict[str, subprocess.Popen[bytes]]
) -> Measured:
    context = make_context(config, "learner")
    weights = WeightsServer(context)
    replay = connect(context, config.net.experience[0], "replay", max_in_flight=1)
    backend = make_backend(config.env, config.env.envs)
    tally = Tally()
    envs = [asyncio.create_task(_env_server(config, backend.spec, number, tally)) for number in range(count)]
    trainer = Trainer(config, backend.spec, ordinal=1)
    weights.publish(trainer.weights(0, 0.0))

    async def consume() -> None:
        while True:
            await replay.request(Sample("experience", 1, trainer.version))

    def now() -> tuple[float, ...]:
        return (
            time.monotonic(),
            tally.acts,
            tally.inserts,
            *(cpu_s(f"the {role}-server", child.pid) for role, child in children.items()),
            time.process_time(),
        )

    consumer = asyncio.create_task(consume())
    try:
        while tally.inserts < count:  # everybody is there
            await asyncio.sleep(0.05)
            for role, child in children.items():
                if child.poll() is not None:
                    raise HeadraceError(f"the {role}-server ended with exit code {child.returncode}", "see its log")
            for task in (consumer, *envs):
                if task.done():
                    task.result()
        before = now()
        await asyncio.sleep(seconds)
        passed, acts, inserts, *cpu = (b - a for a, b in zip(before, now(), strict=True))
        by = dict(zip((*children, "client"), cpu, strict=True))
        return Measured(
            acts / passed,
            inserts / passed,
            by["inference"] / max(acts, 1),
            by["replay"] / max(inserts, 1),
            by["client"] / max(acts, 1),
        )
    finally:
        for task in (consumer, *envs):
            task.cancel()
        await asyncio.gather(consumer, *envs, return_exceptions=True)
        replay.close()
        weights.server.close()


def make_room() -> None:
    """Lets this process have two sockets per connection, which is more than the defaults allow.

    Call it first: a context that has had a socket keeps to the number that it began with.
    """
    zmq.Context.instance().set(zmq.MAX_SOCKETS, 8 * max(COUNTS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def run(load_: Load, seconds: float) -> Measured:
    """Starts both servers and measures them under `load_`."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        plan = local_plan(job(load_), folder, folder)
        children = {p.role: start(p) for p in plan.processes if p.role in ("inference", "replay")}
        try:
            return asyncio.run(_measure(plan.config, load_.connections, seconds, children))
        finally:
            for child in children.values():
                child.terminate()
            for child in children.values():
                child.wait()


def measure(seconds: float, repeat: int) -> dict[int, list[Measured]]:
    """Measures each count in turn, `repeat` times."""
    found: dict[int, list[Measured]] = {count: [] for count in COUNTS}
    for _ in range(repeat):
        for count in COUNTS:
            found[count].append(run(Load(count), seconds))
    return found


def report(found: dict[int, list[Measured]]) -> str:
    """Gives a Markdown table."""
    best = max(statistics.median(m.acts_s for m in runs) for runs in found.values())
    lines = [
        "| connections | Acts/s, median (min to max) | steps/s | Inserts/s | of the best "
        "| cores busy: inference | replay | env-servers | together |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for count, runs in found.items():
        acts = [m.acts_s for m in runs]
        middle = statistics.median(acts)
        inserts = statistics.median(m.inserts_s for m in runs)
        busy = [statistics.median(kind) for kind in zip(*(m.cores for m in runs), strict=True)]
        said = " | ".join(f"{cores:.2f}" for cores in (*busy, sum(busy)))
        rates = f"{spread(acts, ',.0f')} | {middle * ENVS:,.0f} | {inserts:,.0f} | {middle / best:.0%}"
        lines.append(f"| {count} | {rates} | {said} |")
    return "\n".join(lines) + f"\n\nOn {os.cpu_count()} cores, the simulated env-servers' own process included."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    make_room()
    print(report(measure(arguments.seconds, arguments.repeat)))


if __name__ == "__main__":
    main()
