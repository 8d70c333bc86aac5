"""What containers and encryption cost: one job as local processes over ipc, in containers over tcp, and over CURVE.

And what a second env-server adds to a running job, and what is left when it goes. Needs a Docker engine, which
deploy/bootstrap brings, and the images (`docker compose build`).

    deploy/bootstrap python -m benchmarks.containers [--seconds 15] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.page import spread
from services.control.readings import parse_metrics

ROOT = Path(__file__).resolve().parent.parent
JOB = ("env-server", "inference-server", "replay-server", "learner-server")
PROJECT = "headrace-bench"
START_S = 120.0
# Until it is stopped; one epoch, so that what is measured is the way of the data and not the learner alone.
ENDLESS = ("stop.episode_return=null", "stop.steps=0", "stop.seconds=100000", "learner.lr_schedule=constant")
ASYNCHRONOUS = (
    "replay.max_policy_lag=1000",
    "replay.tables.experience.capacity=8",
    "learner.batch=2",
    "algorithm.epochs=1",
    "algorithm.minibatches=1",
)
TASKS = {
    "CartPole-v1, 2 groups of 512, MLP 64-64": ("env.id=CartPole-v1", "env.envs=512", "rollout.unroll=32"),
    "ALE/Pong-v5, 2 groups of 16, Nature CNN": (
        *("env.id=ALE/Pong-v5", "env.envs=16", "rollout.unroll=32", "network.name=nature_cnn", "network.shared=true"),
    ),
}
SLEEPY = (
    *("env.id=headrace/Null-v0", "env.groups=1", "env.envs=32", "rollout.unroll=32"),
    "env.kwargs={step_s: 0.0003, sleep: true}",
)


def _steps(url: str) -> float:
    """Steps that the learner at `url` has counted; 0 while it does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=2) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    return parse_metrics(text).get("headrace_learner_env_steps", 0.0)


def _rate(url: Callable[[], str | None], seconds: float) -> float:
    """Steps per second over `seconds`, once steps are counted."""
    deadline = time.monotonic() + START_S
    while not (where := url()) or _steps(where) == 0.0:
        if time.monotonic() > deadline:
            raise SystemExit("the job does not start: see its logs")
        time.sleep(0.2)
    time.sleep(2.0)
    before, began = _steps(where), time.monotonic()
    time.sleep(seconds)
    return (_steps(where) - before) / (time.monotonic() - began)


def local(overrides: Sequence[str], seconds: float) -> float:
    """Steps per second of `headrace train`: processes over ipc."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as folder:
        log = Path(folder) / "run" / "logs" / "learner.log"
        command = [sys.executable, "-m", "services.control.cli", "train", "configs/cartpole_ppo.yaml"]
        job = subprocess.Popen(
            [*command, *overrides, f"run.dir={folder}", "run.name=run"], cwd=ROOT, stdout=subprocess.DEVNULL
        )

        def url() -> str | None:
            found = re.findall(r"metrics on (http://\S+)/metrics", log.read_text() if log.exists() else "")
            return str(found[-1]) if found else None

        try:
            return _rate(url, seconds)
        finally:
            job.terminate()
            job.wait()


def _compose(environ: dict[str, str], *arguments: str) -> str:
    command = ["docker", "compose", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environ, capture_output=True, check=True).stdout.decode()


@contextmanager
def stack(overrides: Sequence[str], curve: bool = False) -> Iterator[dict[str, str]]:
    """Runs the job in containers, and gives the environment of `docker compose`."""
    environ = {
        "COMPOSE_PROJECT_NAME": PROJECT,
        "JOB_CONFIG": "configs/cartpole_ppo.yaml",
        "JOB_OVERRIDES": " ".join(f"'{override}'" for override in overrides),
        **{f"{role}_CPUS": str(os.cpu_count()) for role in ("ENV", "INFERENCE", "REPLAY", "LEARNER")},
    }
    if curve:
        environ["COMPOSE_FILE"] = "docker-compose.yml:deploy/compose.curve.yaml"
    try:
        _compose(environ, "up", "--detach", "--no-build", *JOB)
        yield environ
    finally:
        _compose(environ, "down", "--volumes", "--timeout", "0")


def _learner(environ: dict[str, str]) -> str | None:
    """The address of the learner's metrics, from outside its container."""
    (name,) = _compose(environ, "ps", "--all", "--quiet", "learner-server").split()
    told = json.loads(subprocess.run(["docker", "inspect", name], capture_output=True, check=True).stdout)
    networks = told[0]["NetworkSettings"]["Networks"].values()
    address = next((network["IPAddress"] for network in networks), "")
    return f"http://{address}:9400" if address else None


def containers(overrides: Sequence[str], seconds: float, curve: bool = False) -> float:
    """Steps per second of `docker compose up`: containers over tcp."""
    with stack(overrides, curve) as environ:
        return _rate(lambda: _learner(environ), seconds)


def transport(seconds: float, repeat: int) -> str:
    """Gives a table of local processes, containers and containers with CURVE, in turn, as ratios."""
    rows = ["| job | local, ipc: steps/s | containers, tcp / local | with CURVE / without |", "|---|---|---|---|"]
    for name, task in TASKS.items():
        overrides = [*ENDLESS, *ASYNCHRONOUS, *task]
        runs = [
            (local(overrides, seconds), containers(overrides, seconds), containers(overrides, seconds, curve=True))
            for _ in range(repeat)
        ]
        ratios = [[tcp / ipc for ipc, tcp, _ in runs], [curve / tcp for _, tcp, curve in runs]]
        first = statistics.median(run[0] for run in runs)
        rows.append(f"| {name} | {first:,.0f} | {' | '.join(map(spread, ratios))} |")
    return "\n".join(rows)


def _one_two_one(overrides: Sequence[str], seconds: float) -> list[float]:
    """Steps per second of one job while its env-servers go 1, 2, 1."""
    rates = []
    with stack(overrides) as environ:
        for replicas in (1, 2, 1):
            _compose(environ, "up", "--detach", "--no-build", "--scale", f"env-server={replicas}", *JOB)
            # Start and stop of a container, and unrolls that are under way.
            time.sleep(8.0)
            rates.append(_rate(lambda: _learner(environ), seconds))
    return rates


def elasticity(seconds: float, repeat: int) -> str:
    """Gives a table of steps/s while env-servers go 1, 2, 1: of a simulator that waits, and of one that computes."""
    rows = ["| job | 1 env-server: steps/s | 2 / 1 | 1 again / 1 |", "|---|---|---|---|"]
    kinds = {"32 null environments that sleep 10 ms together": SLEEPY, next(iter(TASKS)): TASKS[next(iter(TASKS))]}
    for name, task in kinds.items():
        runs = [_one_two_one([*ENDLESS, *ASYNCHRONOUS, *task], seconds) for _ in range(repeat)]
        first = statistics.median(run[0] for run in runs)
        rows.append(f"| {name} | {first:,.0f} | {' | '.join(spread([r[i] / r[0] for r in runs]) for i in (1, 2))} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print(transport(arguments.seconds, arguments.repeat), end="\n\n", flush=True)
    print(elasticity(arguments.seconds, arguments.repeat))


if __name__ == "__main__":
    main()
