"""Message rate of one inference-server and one replay-server under 1 to 512 connections.

Each connection is a simulated env-server of one group with 8 CartPole-shaped environments that take no time. It asks
for actions, and inserts a ready-made unroll after every 32 answers. All of them live in one process, whose own work is
part of what is measured. This script also stands in for the learner and drops what it is sent.

    python -m benchmarks.connections [--seconds 5] [--repeat 3]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.collect import DEFAULTS, start
from common.config import Config, load
from common.messages import Act, Insert, Sample
from common.service import connect, make_context
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec, new_life
from services.control.compose import local_plan
from services.learner_server.server import WeightsServer
from services.learner_server.trainer import Trainer

COUNTS = (1, 16, 128, 512)
ENVS, UNROLL = 8, 32
SPEC = EnvSpec("null", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i8", (), (2,)))


class Tally:
    """Requests answered so far."""

    acts = 0
    inserts = 0


async def _env_server(config: Config, number: int, tally: Tally) -> None:
    context = make_context(config, "env", index=number)
    slot, life = f"{context.name}/0", new_life()
    hello = context.hello(SPEC.to_wire(), ((slot, life),))
    inference = connect(context, config.net.act[0], "inference", max_in_flight=1, hello=hello)
    replay = connect(context, config.net.experience[0], "replay", max_in_flight=1, hello=hello)
    try:
        await replay.welcome()
        await inference.welcome()
        row: Arrays = {"observation.obs": np.zeros((ENVS, 4), np.float32), "first": np.zeros(ENVS, np.bool_)}
        for step in range(1 << 40):
            await inference.request(Act(number * ENVS, ENVS, step, 0, row))
            tally.acts += 1
            if step % UNROLL == UNROLL - 1:
                n = (step + 1) // UNROLL
                steps = n * UNROLL * ENVS
                insert = Insert(("experience",), slot, life, n, number * ENVS, steps, steps, _unroll())
                await replay.request(insert)
                tally.inserts += 1
    finally:
        inference.close()
        replay.close()


def _unroll() -> Arrays:
    flags = {name: np.zeros((UNROLL, ENVS), np.bool_) for name in ("terminated", "truncated")}
    return {
        "observation.obs": np.zeros((UNROLL + 1, ENVS, 4), np.float32),
        "action": np.zeros((UNROLL, ENVS), np.int64),
        "extras.log_prob": np.zeros((UNROLL, ENVS), np.float32),
        "first": np.zeros((UNROLL + 1, ENVS), np.bool_),
        "reward": np.zeros((UNROLL, ENVS), np.float32),
        **flags,
        "valid": np.ones((UNROLL, ENVS), np.bool_),
        "versions": np.full(UNROLL, 1 << 40, np.int64),
        "reward_before": np.zeros(ENVS, np.float32),
        "episode_returns": np.zeros(0, np.float32),
        "episode_lengths": np.zeros(0, np.int32),
    }


async def _measure(config: Config, count: int, seconds: float) -> tuple[float, float]:
    """Gives Acts and Inserts answered per second."""
    context = make_context(config, "learner")
    weights = WeightsServer(context)
    replay = connect(context, config.net.experience[0], "replay", max_in_flight=1)
    tally = Tally()
    envs = [asyncio.create_task(_env_server(config, number, tally)) for number in range(count)]
    trainer = Trainer(config, EnvSpec.from_wire((await replay.welcome()).spec), ordinal=1)
    weights.publish(trainer)

    async def consume() -> None:
        while True:
            await replay.request(Sample("experience", 1, trainer.version))

    consumer = asyncio.create_task(consume())
    try:
        while tally.inserts < count:  # everybody is there
            await asyncio.sleep(0.05)
        began, acts, inserts = time.monotonic(), tally.acts, tally.inserts
        await asyncio.sleep(seconds)
        passed = time.monotonic() - began
        return (tally.acts - acts) / passed, (tally.inserts - inserts) / passed
    finally:
        for task in (consumer, *envs):
            task.cancel()
        await asyncio.gather(consumer, *envs, return_exceptions=True)
        replay.close()
        weights.server.close()


def run(count: int, seconds: float) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        overrides = [*DEFAULTS, f"env.envs={ENVS}", f"rollout.unroll={UNROLL}", "replay.tables.experience.capacity=64"]
        plan = local_plan(load(None, overrides), folder, folder)
        children = [start(process) for process in plan.processes if process.role in ("inference", "replay")]
        try:
            return asyncio.run(_measure(plan.config, count, seconds))
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait()


def report(seconds: float, repeat: int) -> str:
    """Measures each count in turn, `repeat` times; gives a Markdown table."""
    results: dict[int, list[tuple[float, float]]] = {count: [] for count in COUNTS}
    for _ in range(repeat):
        for count in COUNTS:
            results[count].append(run(count, seconds))
    best = max(statistics.median(acts for acts, _ in runs) for runs in results.values())
    lines = ["| connections | Acts/s, median (min to max) | Inserts/s | of the best |", "|---|---|---|---|"]
    for count, runs in results.items():
        acts = [a for a, _ in runs]
        middle = statistics.median(acts)
        inserts = statistics.median(i for _, i in runs)
        spread = f"{middle:,.0f} ({min(acts):,.0f} to {max(acts):,.0f})"
        lines.append(f"| {count} | {spread} | {inserts:,.0f} | {middle / best:.0%} |")
    return "\n".join(lines) + f"\n\nOn {os.cpu_count()} cores, the simulated env-servers' own process included."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print(report(arguments.seconds, arguments.repeat))


if __name__ == "__main__":
    main()
