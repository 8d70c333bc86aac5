"""A model of steps/s from measured costs per message and per byte, checked against measurements, for docs/scaling.md.

Each role's processor time per message is fitted as a + b * bytes (+ c * environments in a forward pass) from short runs
of `benchmarks.connections`. What the job reaches is the least of what its roles, its cores and its links can carry.

    python -m benchmarks.scaling [--seconds 4] [--repeat 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import connections
from benchmarks.connections import UNROLL, Load, Measured
from benchmarks.page import repetitions, stamped
from services.control.words import count as short

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
# Small and large observations, few and many environments; 32 connections keep every role busy.
FITTED = (Load(32), Load(32, 64), Load(32, 512), Load(32, 8, 512), Load(32, 8, 4096), Load(32, 8, 16384))


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds of one message: fixed, per byte of payload, and per environment in it."""

    fixed: float
    byte: float
    env: float = 0.0

    def of(self, size: float, envs: float = 0.0) -> float:
        return self.fixed + self.byte * size + self.env * envs


@dataclass(frozen=True, slots=True)
class Costs:
    """What an Act costs an inference-server and an env-server, and an Insert, drawn once, a replay-server.

    `wait_s` is what a lone round trip takes beyond its processor time: sockets, wake-ups, the scheduler.
    """

    inference: Cost
    client: Cost
    replay: Cost
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """A job: env-servers of `groups` groups of `envs` environments whose step takes `step_s` of a core each.

    `size` is the bytes of one observation, `seen` those that go to inference (a frame stack is larger). `pass_s` is the
    inference-server's own time per environment, None for that of the measured network; `link` is bytes per second.
    """

    servers: int
    inference: int
    envs: int
    size: float
    step_s: float = 0.0
    groups: int = 2
    seen: float | None = None
    pass_s: float | None = None
    cores: int | None = None
    link: float = float("inf")
    clients: int | None = None

    @property
    def act_bytes(self) -> float:
        return self.envs * (self.size if self.seen is None else self.seen)


def fit(measured: list[tuple[Load, Measured]]) -> Costs:
    """Fits the three costs by least squares of relative errors; no part of a cost is negative."""
    size = np.array([load.act_bytes for load, _ in measured], np.float64)
    envs = np.array([load.envs for load, _ in measured], np.float64)
    one = np.ones_like(size)

    def solve(columns: list[np.ndarray], seconds: list[float]) -> list[float]:
        wanted = np.array(seconds)
        left = list(range(len(columns)))
        while True:
            found = np.linalg.lstsq(np.stack([columns[i] for i in left], 1) / wanted[:, None], one, rcond=None)[0]
            if (found >= 0).all():
                return [float(found[left.index(i)]) if i in left else 0.0 for i in range(len(columns))]
            left.pop(int(found.argmin()))

    inference = solve([one, size, envs], [m.inference_s for _, m in measured])
    client = solve([one, size, envs], [m.client_s for _, m in measured])
    replay = solve([one, size * UNROLL, envs * UNROLL], [m.replay_s for _, m in measured])
    return Costs(Cost(*inference), Cost(*client), Cost(*replay))


def capacity(costs: Costs, job: Job) -> dict[str, float]:
    """Gives the steps per second at which each part of a job of one replay-server is used up: it reaches the least."""
    n, act, frame = job.envs, job.act_bytes, job.envs * job.size
    inference = costs.inference if job.pass_s is None else Cost(costs.inference.fixed, costs.inference.byte, job.pass_s)
    asked = inference.of(act, n)
    stored = costs.replay.of(frame * UNROLL, n * UNROLL) / UNROLL
    stepped = costs.client.of(act, n) + n * job.step_s
    parts = {
        "env-servers": (job.clients or job.servers) * n / stepped,
        "inference-servers": job.inference * n / asked,
        "replay-servers": n / stored,
        "links into inference": job.inference * job.link / act * n,
        # As much comes into replay over a link of its own.
        "link into the learner": job.link / frame * n,
        # With G groups there are G requests under way; each needs every stage in turn.
        "round trips": job.servers * job.groups * n / (asked + stepped + stored + costs.wait_s),
    }
    if job.cores is not None:
        parts["cores"] = job.cores * n / (asked + stored + stepped)
    return parts


def with_wait(costs: Costs, alone: Measured) -> Costs:
    """Gives the costs with the wait that a single connection's rate leaves over."""
    load, row = Load(1), Load(1).act_bytes
    busy = costs.inference.of(row, load.envs) + costs.client.of(row, load.envs)
    busy += costs.replay.of(row * UNROLL, load.envs * UNROLL) / UNROLL
    return replace(costs, wait_s=max(0.0, 1 / alone.acts_s - busy))


def checked(costs: Costs, found: dict[int, list[Measured]]) -> str:
    """Gives the model beside what 1 to 512 connections measured."""
    lines = ["| connections | measured, Acts/s | model, Acts/s | model is | limited by |", "|---|---|---|---|---|"]
    wait = f"A lone round trip waits {costs.wait_s * 1e6:.0f} µs beyond its processor time, fitted to the first row."
    for number, runs in found.items():
        load = Load(number)
        # All simulated env-servers share one process.
        job = Job(number, 1, load.envs, load.floats * 4, groups=1, cores=os.cpu_count(), clients=1)
        parts = capacity(costs, job)
        limit = min(parts, key=lambda name: parts[name])
        model, real = parts[limit] / load.envs, statistics.median(m.acts_s for m in runs)
        lines.append(f"| {number} | {real:,.0f} | {model:,.0f} | {model / real:.2f} x | {limit} |")
    return "\n".join([*lines, "", wait])


def cost_table(costs: Costs) -> str:
    lines = ["| processor time | per message | per KiB | per environment in it |", "|---|---|---|---|"]
    names = {"inference": "inference-server, Act", "client": "env-server, Act", "replay": "replay-server, Insert"}
    for key, name in names.items():
        cost: Cost = getattr(costs, key)
        lines.append(
            f"| {name} | {cost.fixed * 1e6:.0f} µs | {cost.byte * 1024 * 1e6:.2f} µs | {cost.env * 1e6:.2f} µs |"
        )
    return "\n".join(lines)


GIGABIT = 1e9 / 8
# Env-servers of one core each, a GPU per inference-server; pass_s are assumptions of the page, not measurements.
CLUSTERS = {
    "CartPole-like: 16 B, 0.2 µs a step, MLP": Job(1000, 8, 1024, 16, 2e-7, pass_s=1e-7, link=25 * GIGABIT),
    "MuJoCo-like: 136 B, 22 µs a step, MLP": Job(1000, 8, 64, 136, 2.2e-5, pass_s=2e-7, link=25 * GIGABIT),
    "Atari-like: 7 KiB frames in stacks of 4, 250 µs a step, CNN": Job(
        1000, 8, 16, 7056, 2.5e-4, seen=4 * 7056, pass_s=1e-5, link=25 * GIGABIT
    ),
}


def cluster(costs: Costs) -> str:
    """Says for each kind of job what 1,000 env-servers could make, and how much of each other role that would take."""
    lines = [
        "| job | env-servers make | inference-servers | replay-servers | links into inference | breaks first, at |",
        "|---|---|---|---|---|---|",
    ]
    for name, job in CLUSTERS.items():
        parts = capacity(costs, job)
        wanted = parts["env-servers"]
        others = {part: rate for part, rate in parts.items() if part not in ("env-servers", "round trips")}
        first = min(others, key=lambda part: others[part])
        need = {
            "inference-servers": wanted / (parts["inference-servers"] / job.inference),
            "replay-servers": wanted / parts["replay-servers"],
            "links into inference": wanted / (parts["links into inference"] / job.inference),
        }
        cells = [f"{-(-need[part] // 1):,.0f}" for part in need]
        lines.append(
            f"| {name} | {short(wanted)} steps/s | " + " | ".join(cells) + f" | {first}, {short(others[first])} |"
        )
    return "\n".join(lines)


def report(seconds: float, repeat: int) -> dict[str, str]:
    """Measures, fits and checks; gives the sections of the page."""
    measured = [(load, connections.run(load, seconds)) for load in FITTED for _ in range(repeat)]
    found = connections.measure(seconds, repeat)
    alone = sorted(found[1], key=lambda one: one.acts_s)[len(found[1]) // 2]
    costs = with_wait(fit(measured), alone)
    how = repetitions(repeat, seconds)
    measured_sections = {"costs": cost_table(costs), "check": checked(costs, found)}
    return {name: stamped(text, how) for name, text in measured_sections.items()} | {"cluster": cluster(costs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    connections.make_room()
    for text in report(arguments.seconds, arguments.repeat).values():
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
