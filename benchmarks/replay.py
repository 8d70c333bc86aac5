"""The replay core beside numpy's own gather, other buffers and the service.

Observations of 17 float32, actions of 6, a million steps, batches of 256, one thread each.

    python -m benchmarks.replay [--repeat 5] [--seconds 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
import yaml

from benchmarks.page import show, write_json
from common.config import TableConfig, validate
from common.messages import Batch, Insert, Sample, UpdatePriorities
from common.service import connect, make_context
from common.transport.client import Client
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec, new_life
from services.control.bench.peers import HOME, Peer, python_of, ready
from services.control.bench.report import show_ratio
from services.replay_server.ring.table import RingTable
from services.replay_server.unroll import Drawn, Unroll

CAPACITY, BATCH, OBSERVATION, ACTION = 1_000_000, 256, 17, 6
UNROLL, ENVS = 64, 64
UNIFORM, PRIORITIZED, INSERT, STACKS = "uniform draw", "prioritized draw and update", "insert", "84 x 84 x 4 draw"
PER_REQUEST = 8
MANY = f"service, {PER_REQUEST} batches a request"
SCRIPTS = {"cpprb": "cpprb_peer.py", "torchrl": "torchrl_peer.py", "sb3": "sb3_replay.py"}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
Rates = dict[str, float]


def table_of(unroll: int = UNROLL, capacity: int = CAPACITY, **settings: Any) -> RingTable:
    config = TableConfig.model_validate({"kind": "uniform", "capacity": capacity, **settings})
    return RingTable("bench", config, unroll, largest_insert=1, largest_sample=1, seed=0)


def unroll_of(steps: int, envs: int, frame: tuple[int, ...] = (OBSERVATION,), stack: int = 1) -> Arrays:
    random, shape = np.random.default_rng(0), (steps, envs)
    seen = random.random((steps + stack, envs, *frame), dtype=np.float32)
    return {
        "observation.obs": seen if stack == 1 else (255 * seen).astype(np.uint8),
        "first": np.zeros((steps + 1, envs), np.bool_),
        "action": random.random((*shape, ACTION), dtype=np.float32),
        "reward": random.random(shape, dtype=np.float32),
        "terminated": random.random(shape) < 0.001,
        "truncated": np.zeros(shape, np.bool_),
        "valid": np.ones(shape, np.bool_),
        "reward_before": np.zeros(envs, np.float32),
        "versions": np.zeros(steps, np.int64),
        "episode_returns": np.zeros(0, np.float32),
        "episode_lengths": np.zeros(0, np.int32),
    }


def fill(table: RingTable, arrays: Arrays, steps: int, number: int = 0) -> int:
    """Inserts until `steps` more are stored; gives the last unroll's number."""
    for _ in range(-(-steps // arrays["reward"].size)):
        number += 1
        unroll = Unroll("env-0/0", 1, number, 0, arrays)
        table.check(unroll)
        table.insert(unroll, None)
        table.poll(0.0)
    return number


def draw(table: RingTable, n: int = BATCH) -> Arrays:
    table.sample(n, 0, None)
    (answer,) = table.poll(0.0)
    assert isinstance(answer, Drawn)
    assert answer.arrays is not None
    return answer.arrays


def per_second(work: Callable[[], object], items: int, seconds: float) -> float:
    """Items per second of `work`, which handles `items` at a time."""
    work()
    began, n = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        for _ in range(20):
            work()
        n += 20
    return n * items / (time.perf_counter() - began)


def gather() -> Callable[[], object]:
    """numpy's take(out=) of the five arrays of a transition, indices drawn anew each time: the limit."""
    random = np.random.default_rng(0)
    shapes = [(OBSERVATION,), (OBSERVATION,), (ACTION,), (), ()]
    stores = [random.random((CAPACITY, *shape), dtype=np.float32) for shape in shapes]
    outs = [np.empty((BATCH, *shape), np.float32) for shape in shapes]

    def work() -> None:
        index = random.integers(CAPACITY, size=BATCH)
        for store, out in zip(stores, outs, strict=True):
            store.take(index, axis=0, out=out)

    return work


def whole_stacks(capacity: int) -> Callable[[], object]:
    """numpy's gather of 32 pairs of stacks that are stored whole."""
    random, stacks = np.random.default_rng(0), np.ones((capacity, 4, 84, 84), np.uint8)

    def work() -> None:
        index = random.integers(capacity - 1, size=32)
        stacks.take(index, axis=0)
        stacks.take(index + 1, axis=0)

    return work


def numpy_rates(seconds: float) -> Rates:
    return {UNIFORM: per_second(gather(), BATCH, seconds), STACKS: per_second(whole_stacks(20_000), 32, seconds)}


def core_rates(seconds: float) -> Rates:
    table, arrays = table_of(), unroll_of(UNROLL, ENVS)
    number = fill(table, arrays, CAPACITY)
    rates = {UNIFORM: per_second(lambda: draw(table), BATCH, seconds)}
    began = time.perf_counter()
    fill(table, arrays, CAPACITY, number)
    rates[INSERT] = CAPACITY / (time.perf_counter() - began)
    by_priority, random = table_of(kind="prioritized", n_step=3, discount=0.99), np.random.default_rng(0)
    fill(by_priority, arrays, CAPACITY)

    def turn() -> None:
        keys = draw(by_priority)["keys"]
        by_priority.update({"keys": keys, "priorities": random.random(BATCH)})

    rates[PRIORITIZED] = per_second(turn, BATCH, seconds)
    frames = table_of(20, 20_000)
    fill(frames, unroll_of(20, 8, (84, 84), stack=4), 20_000)
    rates[STACKS] = per_second(lambda: draw(frames, 32), 32, seconds)
    return rates


def service_rates(seconds: float) -> dict[str, Rates]:
    """The same through a replay-server process over ipc, two requests under way, of one and of several batches."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as folder:
        tables = {
            UNIFORM: {"kind": "uniform", "capacity": CAPACITY},
            PRIORITIZED: {"kind": "prioritized", "capacity": CAPACITY, "n_step": 3, "discount": 0.99},
        }
        tree = {
            "env": {"envs": ENVS, "groups": 1},
            "rollout": {"unroll": UNROLL, "tables": [UNIFORM]},
            "replay": {"tables": tables},
            "learner": {"table": UNIFORM, "batch": BATCH, "per_request": PER_REQUEST},
            "net": {"experience": [f"ipc://{folder}/replay"]},
        }
        path = Path(folder, "job.yaml")
        path.write_text(yaml.safe_dump(tree))
        argv = [sys.executable, "-m", "services.replay_server", "--config", str(path)]
        server = subprocess.Popen(argv, stderr=subprocess.DEVNULL, env=ONE_THREAD)
        try:
            return uvloop.run(_ask(tree, seconds))
        finally:
            server.kill()
            server.wait()


async def _ask(tree: dict[str, Any], seconds: float) -> dict[str, Rates]:
    config, life, arrays = validate(tree), new_life(), unroll_of(UNROLL, ENVS)
    bound = (1.0,) * ACTION
    action = ActionSpec("box", "<f4", (ACTION,), low=tuple(-b for b in bound), high=bound)
    spec = EnvSpec("bench", (ArraySpec("obs", "<f4", (OBSERVATION,)),), action)
    contexts = [make_context(config, role) for role in ("env", "learner")]
    hello = contexts[0].hello(spec.to_wire(), (("env-0/0", life),))
    env = connect(contexts[0], config.net.experience[0], "replay", max_in_flight=4, hello=hello)
    learner = connect(contexts[1], config.net.experience[0], "replay", max_in_flight=4)
    await env.welcome()
    welcome = await learner.welcome()
    rates: dict[str, Rates] = {"service": {}, MANY: {}}
    sent = 0

    async def filled(name: str) -> float:
        """Inserts until so many steps more are stored as a table holds; gives the seconds that it took."""
        enough = sent + CAPACITY // (UNROLL * ENVS)

        async def insert() -> None:
            nonlocal sent
            sent += 1
            steps = sent * UNROLL * ENVS
            await env.request(Insert((name,), "env-0/0", life, sent, 0, steps, steps, arrays))

        began = time.perf_counter()
        await _in_turn(insert, 4, lambda: sent < enough)
        return time.perf_counter() - began

    for name in (UNIFORM, PRIORITIZED):
        await filled(name)
        if name == UNIFORM:
            # Like the core: into a uniform table whose memory has been touched.
            rates["service"][INSERT] = CAPACITY / await filled(name)
        for subject, n in (("service", BATCH), (MANY, PER_REQUEST * BATCH)):
            rates[subject][name] = await _draws(learner, name, welcome.life, n, seconds)
    for client in (env, learner):
        client.close()
    return rates


async def _draws(learner: Client, name: str, life: int, n: int, seconds: float) -> float:
    random, drawn, began = np.random.default_rng(0), 0, time.perf_counter()

    async def turn() -> None:
        nonlocal drawn
        batch = await learner.request(Sample(name, n, 0))
        assert isinstance(batch, Batch)
        drawn += n
        if name == PRIORITIZED:
            news = {"keys": batch.arrays["keys"], "priorities": random.random(n)}
            await learner.request(UpdatePriorities(name, life, news))

    await _in_turn(turn, 2, lambda: time.perf_counter() < began + seconds)
    return drawn / (time.perf_counter() - began)


async def _in_turn(work: Callable[[], Any], workers: int, more: Callable[[], bool]) -> None:
    async def worker() -> None:
        while more():
            await work()

    await asyncio.gather(*(worker() for _ in range(workers)))


def peer_rates(name: str, seconds: float) -> Rates:
    """What a peer's buffer reaches, if `python -m benchmarks.peers install` has put it here."""
    peer = Peer(name, name)
    if not ready(peer, HOME):
        return {}
    script = Path(__file__).parent / "peers" / SCRIPTS[name]
    argv = [python_of(peer, HOME), script, "replay", str(seconds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=ONE_THREAD)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(repeat: int, seconds: float) -> list[dict[str, Rates]]:
    """Measures all subjects in turn, `repeat` times; gives the rates of each round by subject and setting."""
    rounds = []
    for _ in range(repeat):
        found = {"numpy": numpy_rates(seconds), "core": core_rates(seconds), **service_rates(seconds)}
        rounds.append(found | {peer: peer_rates(peer, seconds) for peer in SCRIPTS})
    return rounds


def report(rounds: list[dict[str, Rates]]) -> str:
    """Gives a Markdown table: each setting of ours beside every other subject that has it, paired round by round."""
    lines = ["| transitions/s | Headrace, core | beside | median | core is |", "|---|---|---|---|---|"]
    for name in rounds[0]["core"]:
        ours = [found["core"][name] for found in rounds]
        for subject in rounds[0]:
            theirs = [found[subject].get(name, 0.0) for found in rounds]
            if subject == "core" or not all(theirs):
                continue
            ratios = show_ratio(tuple(a / b for a, b in zip(ours, theirs, strict=True)))
            mine, median = (f"{statistics.median(rates) / 1e6:.3g} M" for rates in (ours, theirs))
            lines.append(f"| {name} | {mine} | {subject} | {median} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write every repetition to this file")
    arguments = parser.parse_args()
    rounds = measure(arguments.repeat, arguments.seconds)
    show(report(rounds), ("transitions/s", "core", "beside", "median", "core is"))
    if arguments.json is not None:
        write_json(arguments.json, {"rounds": rounds})


if __name__ == "__main__":
    main()
