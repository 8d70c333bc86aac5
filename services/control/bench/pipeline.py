"""Collect runs: env-, inference- and replay-servers as processes over ipc, with this process in the learner's place.

Owns the processes' lives and how steps are counted; knows neither what is compared nor what is tuned. Inference- and
replay-servers stay from one run to the next where their settings allow it: they take seconds to start.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.config import Config, MixConfig, NetConfig, TableConfig
from common.errors import HeadraceError
from common.messages import Sample
from common.service import connect, make_context
from common.transport.client import Client
from common.types import EnvSpec, make_version
from services.control.compose import private_dir
from services.control.engines import guardian
from services.control.engines.local import THREAD_VARIABLES
from services.control.monitor import WORK
from services.control.readings import Reading, read, total
from services.learner_server.trainer import Trainer
from services.learner_server.weights import WeightsServer

WARM_S = 0.4  # after the first steps: caches, allocators and the choice of a forward pass settle
START_S = 90.0
STOP_S = 5.0
POLL_S = 0.05
TURNS, PATIENCE = 20, 4  # a run goes on until each env-server has stepped its groups so often, or so long
AHEAD = 1 << 30  # the version asked for is so far ahead of the one acting that every unroll is too old for it
STEPS = "headrace_env_step_seconds_count"

LAUNCH = [sys.executable]  # what a service is started with; an ablation puts a script of its own in between

Readings = list[tuple[str, float, Reading, float]]  # role, when it was read, what it said, its processor seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """Valid steps per second of one run, and the share of the time that each role's processes were at work."""

    steps_s: float
    busy: dict[str, float]


def collecting(config: Config) -> Config:
    """Gives `config` with a table that takes every unroll and keeps none back, whatever the learner would ask for."""
    table = config.replay.tables[config.learner.table]
    if table.kind != "fifo":
        free = {name: t.model_copy(update={"samples_per_insert": 0.0}) for name, t in config.replay.tables.items()}
        return config.model_copy(update={"replay": config.replay.model_copy(update={"tables": free})})
    name = config.learner.table
    replay = {"tables": {name: TableConfig(kind="fifo", capacity=4)}, "max_policy_lag": 1}
    changes = {
        "replay": config.replay.model_copy(update=replay),
        "learner": config.learner.model_copy(update={"batch": 1, "replayed": MixConfig()}),
        "rollout": config.rollout.model_copy(update={"tables": (name,)}),
    }
    if config.synchronous:
        # Synchronous inference serves each request alone.
        changes["inference"] = config.inference.model_copy(update={"max_batch": 1})
    return config.model_copy(update=changes)


def _table(config: Config) -> str:
    """What tells one replay-server from another."""
    return config.rollout.model_dump_json() + config.replay.model_dump_json()


def cpu_s(name: str, pid: int) -> float:
    """Gives the processor seconds of all threads of a process so far; raises HeadraceError if it ended."""
    try:
        spent = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess as error:
        raise HeadraceError(f"{name} ended", "see its log") from error
    return float(spent.user + spent.system)


class Child:
    """One service process, and the file in which it says its http address."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], announce: Path, log: Path) -> None:
        self.name = name
        self.role = name.partition("-")[0]
        self.process = process
        self._announce = announce
        self._log = log

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    async def read(self) -> Reading | None:
        """Gives what the service says of itself, None while it does not answer; raises HeadraceError if it ended."""
        if self.ended:
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()][-5:]
            raise HeadraceError(f"{self.name} ended with exit code {self.process.returncode}", "\n".join(lines))
        try:
            return await read(self._announce.read_text())
        except OSError:
            return None


class Pipeline:
    """Runs one config after another; use `open_pipeline`. All must be of one environment, network and algorithm."""

    def __init__(self, folder: Path, group: int) -> None:
        self._folder = folder
        self._group = group
        self._weights: WeightsServer | None = None
        self._published = False
        self._inference: list[Child] = []
        self._inference_of = ""
        self._tables: dict[str, Client] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._valid = 1.0
        self._replay: dict[str, Child] = {}
        self.children: list[Child] = []
        self.started: list[Child] = []

    async def run(
        self, config: Config, seconds: float, warm_s: float = WARM_S, warm: Callable[[], object] = int
    ) -> Measured:
        """Measures `config` over `seconds`, calling `warm` when they begin; its env-servers live only so long.

        Raises HeadraceError if a process ends, or if no step is made within START_S.
        """
        config = collecting(config)
        placed = self._serve(config)
        envs = [self._start("env", i, placed) for i in range(config.env.servers)]
        table = _table(config)
        servers = [*self._inference[: config.inference.servers], self._replay[table]]
        self.children = [*envs, *servers]
        try:
            await self._flowing(envs, servers, self._tasks[table])
            await asyncio.sleep(warm_s)
            before = await self._readings()
            warm()
            for _ in range(PATIENCE):
                await asyncio.sleep(seconds)
                after = await self._readings()
                if _turns(after) - _turns(before) >= TURNS * len(envs):
                    break
            return self._measured(config, before, after)
        finally:
            self._stop(envs)

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        for client in self._tables.values():
            client.close()
        if self._weights is not None:
            self._weights.server.close()

    def _serve(self, config: Config) -> Config:
        """Starts what `config` needs besides env-servers and is not there any more; gives it with all addresses."""
        key = config.inference.model_copy(update={"servers": 1}).model_dump_json()
        if key != self._inference_of or any(child.ended for child in self._inference):
            self._stop(self._inference)
            self._inference, self._inference_of = [], key
        table = _table(config)
        # A socket's path is short, so addresses are numbered, not named after the settings.
        number = list(self._replay).index(table) if table in self._replay else len(self._replay)
        net = {
            "weights": self._address("weights"),
            "act": tuple(self._address(f"act-{i}") for i in range(config.inference.servers)),
            "experience": (self._address(f"experience-{number}"),),
        }
        placed = config.model_copy(update={"net": NetConfig.model_validate(config.net.model_dump() | net)})
        if self._weights is None:
            self._weights = WeightsServer(make_context(placed, "learner"))
        if table in self._replay and self._replay[table].ended:
            self._tasks[table].cancel()
            self._tables.pop(table).close()
        if table not in self._tables:
            self._replay[table] = self._start("replay", 0, placed)
            self._tables[table] = connect(
                make_context(placed, "learner"), placed.net.experience[0], "replay", max_in_flight=1
            )
            self._tasks[table] = asyncio.create_task(self._stand_in(placed, self._tables[table]))
        for i in range(len(self._inference), config.inference.servers):
            self._inference.append(self._start("inference", i, placed))
        return placed

    async def _stand_in(self, config: Config, replay: Client) -> None:
        """Does the learner's part: untrained weights, once, and a request that no unroll is new enough for."""
        spec = EnvSpec.from_wire((await replay.welcome()).spec)
        if not self._published and self._weights is not None:
            self._published = True
            self._weights.publish(Trainer(config, spec, ordinal=1).weights(0, 0.0))
        if config.replay.tables[config.learner.table].kind == "fifo":
            await replay.request(Sample(config.learner.table, 1, make_version(1, AHEAD)))

    def _address(self, name: str) -> str:
        return f"ipc://{self._folder}/{name}"

    def _start(self, role: str, index: int, config: Config) -> Child:
        stem = self._folder / str(len(self.started))
        path, announce, log = stem.with_suffix(".yaml"), stem.with_suffix(".url"), stem.with_suffix(".log")
        path.write_text(config.to_yaml())
        argv = ["-m", f"services.{role}_server", "--config", str(path), "--index", str(index)]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        threads = str(config.inference.threads if role == "inference" else 1)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*LAUNCH, *argv, "--announce", str(announce)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environ | dict.fromkeys(THREAD_VARIABLES, threads),
                process_group=self._group,
            )
        self.started.append(Child(f"{role}-{index}", process, announce, log))
        return self.started[-1]

    async def _flowing(self, envs: Sequence[Child], servers: Sequence[Child], learner: asyncio.Task[None]) -> None:
        """Waits until every env-server has made its first steps."""
        deadline = time.monotonic() + START_S
        while True:
            readings = [await child.read() for child in envs]
            if all(r is not None and total(r.samples, STEPS) for r in readings):
                return
            for child in servers:
                await child.read()
            if learner.done():
                learner.result()
            if time.monotonic() > deadline:
                waits = [str(r.health.get("waiting_for")) for r in readings if r is not None]
                raise HeadraceError(f"no step within {START_S:.0f} s", "; ".join(waits) or "no env-server answers")
            await asyncio.sleep(POLL_S)

    async def _readings(self) -> Readings:
        found, deadline = [], time.monotonic() + START_S
        for child in self.children:
            while (reading := await child.read()) is None:
                if time.monotonic() > deadline:
                    said = f"{child.name} said nothing of itself for {START_S:.0f} s"
                    raise HeadraceError(said, "leave it more of the machine")
                await asyncio.sleep(POLL_S)
            found.append((child.role, time.monotonic(), reading, cpu_s(child.name, child.process.pid)))
        return found

    def _measured(self, config: Config, before: Readings, after: Readings) -> Measured:
        """Gives the rates between two rounds of readings of the same processes.

        An env-server's steps are its groups' steps times their environments, less the share that was no decision:
        whole unrolls are too coarse for runs of a second. That share is the one of the unrolls inserted so far.
        """
        turns, busy = 0.0, {"env": 0.0, "inference": 0.0, "replay": 0.0}
        totals = dict.fromkeys(("steps", "unrolls"), 0.0)
        for (role, began, first, spent), (_, ended, last, by_then) in zip(before, after, strict=True):
            if role == "env":
                turns += _growth(STEPS, first, last) / (ended - began)
                for name in totals:
                    totals[name] += total(last.samples, f"headrace_env_{name}_total") or 0.0
            count = sum(other == role for other, *_ in before)
            work = _growth(WORK[role], first, last) if role in WORK else by_then - spent
            busy[role] += work / (ended - began) / count
        if totals["unrolls"]:
            self._valid = totals["steps"] / (totals["unrolls"] * config.rollout.unroll * config.env.envs)
        return Measured(turns * config.env.envs * self._valid, busy)

    @staticmethod
    def _stop(children: Sequence[Child]) -> None:
        for child in children:
            child.process.terminate()
        for child in children:
            try:
                child.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _growth(name: str, first: Reading, last: Reading) -> float:
    return (total(last.samples, name) or 0.0) - (total(first.samples, name) or 0.0)


def _turns(readings: Readings) -> float:
    return sum(total(reading.samples, STEPS) or 0.0 for role, _, reading, _ in readings if role == "env")


@asynccontextmanager
async def open_pipeline() -> AsyncIterator[Pipeline]:
    """Gives a Pipeline; whatever happens to this process, none of its children and no socket stays behind."""
    folder = private_dir()
    leader = guardian.start(str(folder))
    pipeline = Pipeline(folder, leader.pid)
    try:
        yield pipeline
    finally:
        pipeline.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()
        for child in pipeline.started:
            child.process.wait()
        if leader.stdin is not None:
            leader.stdin.close()
        shutil.rmtree(folder, ignore_errors=True)
