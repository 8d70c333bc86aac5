"""How fast steps are collected: env-servers and inference-servers as processes over ipc, unrolls into a FIFO table.

This script stands in for the learner: it serves untrained weights and asks for batches, which it drops. Beside it, in
the same run, the limit without messages (step and infer in one process per core) and Gymnasium's AsyncVectorEnv.

    python -m benchmarks.collect [--seconds 10] [--repeat 5] [--profile] [key=value ...]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import gymnasium
import torch

from benchmarks import profiles
from common.config import Config, load
from common.messages import Batch, Sample
from common.rl.noise import uniforms
from common.rl.policy import build_policy
from common.service import connect, make_context
from common.types import EnvSpec
from services.control.compose import Process, local_plan
from services.env_server.backends import make_backend
from services.env_server.rollout import Rollout
from services.learner_server.server import WeightsServer
from services.learner_server.trainer import Trainer

DEFAULTS = (
    "env.id=CartPole-v1",
    "env.groups=2",
    "env.envs=4096",
    "rollout.unroll=32",
    "network.hidden=[16,16]",
    "replay.max_policy_lag=1000000",
    "replay.tables.experience.capacity=4",
    "learner.batch=1",
)


async def _consume(config: Config, seconds: float, warm: Callable[[], object] = int) -> float:
    """Gives the steps per second that arrive in Batches after a warm-up of a fifth of the time; then calls `warm`."""
    context = make_context(config, "learner")
    weights = WeightsServer(context)
    replay = connect(context, config.net.experience[0], "replay", max_in_flight=1)
    trainer = Trainer(config, EnvSpec.from_wire((await replay.welcome()).spec), ordinal=1)
    weights.publish(trainer)
    totals: dict[int, int] = {}
    first: tuple[float, int] | None = None
    began = time.monotonic()
    try:
        while True:
            batch: Batch = await replay.request(Sample("experience", 1, trainer.version))
            totals |= {life: steps for life, _, steps, _ in batch.arrays["counters"].tolist()}
            now = time.monotonic()
            if first is None and now - began > seconds / 5:
                first = (now, sum(totals.values()))
                warm()
            if now - began > seconds * 1.2 and first is not None:
                return (sum(totals.values()) - first[1]) / (now - first[0])
    finally:
        replay.close()
        weights.server.close()


def start(process: Process) -> subprocess.Popen[bytes]:
    with process.log.open("wb") as log:
        return subprocess.Popen([sys.executable, *process.argv], stdout=log, stderr=log)


def headrace(config: Config, seconds: float, profiled: dict[str, Counter[str]] | None = None) -> float:
    """Steps per second through env-, inference- and replay-servers; fills `profiled` if it is given."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        plan = local_plan(config, folder, folder)
        children = {process.name: start(process) for process in plan.processes if process.role != "learner"}
        try:
            if profiled is None:
                return asyncio.run(_consume(plan.config, seconds))
            pids = {name: child.pid for name, child in children.items()}
            with ThreadPoolExecutor(1) as pool:
                recordings: list[Future[dict[str, Counter[str]]]] = []
                warm = lambda: recordings.append(pool.submit(profiles.record, pids, 0.8 * seconds))  # noqa: E731
                rate = asyncio.run(_consume(plan.config, seconds, warm))
                profiled |= recordings[0].result()
                return rate
        finally:
            for child in children.values():
                child.terminate()
            for child in children.values():
                child.wait()


def _bare(config: Config, seconds: float, rates: multiprocessing.Queue[float]) -> None:
    torch.set_num_threads(1)
    n = config.env.envs
    backend = make_backend(config.env, n)
    policy = build_policy(config.network, backend.spec, 1)
    rollout = Rollout(backend.spec, policy.spec, config.rollout.unroll, n)
    backend.reset(1, rollout.observation_row())
    rollout.begin()
    step, began = 0, time.monotonic()
    with torch.inference_mode():
        while time.monotonic() - began < seconds:
            row = {name: torch.from_numpy(x) for name, x in rollout.observation_row().items()}
            u = torch.from_numpy(uniforms(1, (0, n), step, policy.noise_size))
            action, extras, _ = policy.act(row, torch.zeros(n, dtype=torch.bool), {}, u)
            rollout.act({"action": action.numpy(), "extras.log_prob": extras["log_prob"].numpy()}, 0)
            rollout.advance(backend.step(action.numpy(), *rollout.targets()))
            if rollout.complete:
                rollout.finish()
            step += 1
    rates.put(rollout.steps / (time.monotonic() - began))


def limit(config: Config, seconds: float) -> float:
    """Steps per second of stepping and inferring in one process per core, with no messages."""
    rates: multiprocessing.Queue[float] = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=_bare, args=(config, seconds, rates)) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.start()
    total = sum(rates.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total


def async_vector_env(config: Config, seconds: float) -> float:
    """Steps per second of Gymnasium's AsyncVectorEnv with random actions, 8 environments, no policy."""
    envs = gymnasium.make_vec(config.env.id, num_envs=8, vectorization_mode="async")
    try:
        envs.reset(seed=1)
        actions = [envs.action_space.sample() for _ in range(64)]
        steps, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            envs.step(actions[steps % 64])
            steps += 1
        return 8 * steps / (time.monotonic() - began)
    finally:
        envs.close()


def report(overrides: Sequence[str], seconds: float, repeat: int, profile: bool) -> str:
    """Measures each subject in turn, `repeat` times; gives Markdown tables."""
    config = load(None, [*DEFAULTS, *overrides])
    subjects: dict[str, Callable[[Config, float], float]] = {
        "Headrace": headrace,
        "limit: step and infer, no messages": limit,
        "Gymnasium AsyncVectorEnv of 8, no policy": async_vector_env,
    }
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeat):
        for name, measure in subjects.items():
            rates[name].append(measure(config, seconds))
    what = f"{config.env.id}, {config.env.servers} env-server, {config.env.groups} groups of {config.env.envs}"
    lines = ["| " + what + " | steps/s, median | min to max | Headrace is, median (min to max) |", "|---|---|---|---|"]
    for name, values in rates.items():
        ratios = [ours / other for ours, other in zip(rates["Headrace"], values, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        lines.append(
            f"| {name} | {statistics.median(values):,.0f} | {spread} | {'' if name == 'Headrace' else ratio} |"
        )
    if profile:
        shares: dict[str, Counter[str]] = {}
        headrace(config, seconds, shares)
        lines += ["", profiles.table(shares)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="also say where the time goes, from one more run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    print(report(arguments.overrides, arguments.seconds, arguments.repeat, arguments.profile))


if __name__ == "__main__":
    main()
