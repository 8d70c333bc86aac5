"""Real jobs for tests: services as processes of their own, by hand or under `headrace train`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

ROLES = ("env", "inference", "replay", "learner")
# For what must come sooner or later. It says nothing of speed: where other work leaves a job a fifth of two cores, its
# services take minutes to start.
PATIENCE_S = 300.0
# The tests' own environments must be importable by the services.
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parent)}


async def until(condition: Callable[[], Any], what: str, deadline_s: float = PATIENCE_S) -> Any:
    """Gives what `condition` gives as soon as it holds; fails, naming `what`, after the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(0.02)
    return value


def free_port() -> int:
    """Gives a tcp port of this machine that nobody listens on.

    From below the range that the system gives to connections, and to servers that ask for any port: one out of that
    may be taken again before the test gets to use it.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def short_dir() -> Iterator[Path]:
    """Gives a directory whose path is short enough for ipc sockets."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as name:
        yield Path(name)


def write_config(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


class Service:
    """One service process, started by hand."""

    def __init__(self, role: str, config: Path, run_dir: Path, overrides: Iterable[str] = (), index: int = 0) -> None:
        self.role = role
        self.log = run_dir / f"{role}-{index}.log"
        run_dir.mkdir(exist_ok=True)
        arguments = ["--config", str(config), "--run-dir", str(run_dir), "--index", str(index), *overrides]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{role}_server", *arguments], stdout=log, stderr=log, env=ENVIRON
            )

    def text(self) -> str:
        return self.log.read_text()

    def url(self) -> str | None:
        """The address of /metrics, once the log has it."""
        found = re.findall(r"metrics on (http://\S+)/metrics", self.text())
        return found[-1] if found else None

    async def ended(self) -> int:
        await until(lambda: self.process.poll() is not None, f"end of {self.role}:\n{self.text()[-2000:]}")
        return int(self.process.returncode)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def by_hand(
    config: Path, run_dir: Path, roles: Iterable[str] = ROLES, overrides: dict[str, list[str]] | None = None
) -> Iterator[dict[str, Service]]:
    """Starts services in the order given; whatever still runs at the end is killed."""
    services: dict[str, Service] = {}
    try:
        for role in roles:
            services[role] = Service(role, config, run_dir, (overrides or {}).get(role, []))
        yield services
    finally:
        for service in services.values():
            service.kill()


@contextmanager
def watched(services: Iterable[Service], output: Path) -> Iterator[Callable[[], str]]:
    """Runs `headrace top` on services that are up; gives what reads its plain lines."""
    targets = ",".join(str(service.url()) for service in services)
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.control.cli", "top", "--targets", targets],
            stdout=out,
            stderr=out,
            env=ENVIRON,
        )
    try:
        yield output.read_text
    finally:
        process.kill()
        process.wait()


class Job:
    """`headrace train` as a process, its services as its descendants."""

    def __init__(self, config: Path, run_dir: Path, overrides: Iterable[str] = (), resume: bool = False) -> None:
        self.run_dir = run_dir
        self.output = run_dir.with_suffix(".out")
        name = [f"run.dir={run_dir.parent}", f"run.name={run_dir.name}"]
        what = ["--resume", str(run_dir)] if resume else [str(config), *name, *overrides]
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.control.cli", "train", *what],
                stdout=out,
                stderr=out,
                env=ENVIRON,
                start_new_session=True,
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        # Of a job that still runs, its guardian ends the services and takes away their directory.
        family = self._descendants()
        self.process.kill()
        self.process.wait()
        for process in psutil.wait_procs(family, timeout=20)[1]:
            process.kill()

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def pids(self) -> dict[str, int]:
        """The process id of each role's (first) service that runs now."""
        found: dict[str, int] = {}
        for process in self._descendants():
            try:
                line = " ".join(process.cmdline())
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
            except psutil.Error:
                continue
            for role in ROLES:
                if f"services.{role}_server" in line:
                    found.setdefault(role, process.pid)
        return found

    def metric(self, role: str, name: str, index: int = 0) -> float | None:
        """The value of a metric without labels of the newest life of a role's process; None if it is not up."""
        found = re.search(rf"^{name} (\S+)$", self._ask(role, index, "metrics"), re.MULTILINE)
        return float(found.group(1)) if found else None

    def pid(self, role: str, index: int) -> int | None:
        """The process id that the newest life of one of a role's processes gives; None if it is not up."""
        answer = self._ask(role, index, "healthz")
        return int(json.loads(answer)["pid"]) if answer else None

    def _ask(self, role: str, index: int, page: str) -> str:
        """What a process answers, nothing if it is not up."""
        log = self.run_dir / "logs" / ("learner.log" if role == "learner" else f"{role}-{index}.log")
        try:
            url = re.findall(r"metrics on (http://\S+)/metrics", log.read_text())[-1]
            with urllib.request.urlopen(f"{url}/{page}", timeout=2) as answer:
                return str(answer.read().decode())
        except (OSError, IndexError):
            return ""

    def updates(self) -> float:
        return self.metric("learner", "headrace_learner_weights_version_updates") or 0.0

    def text(self) -> str:
        return self.output.read_text()

    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.run_dir / "result.json").read_text()))

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def ended(self) -> int:
        await until(lambda: self.process.poll() is not None, f"end of the job:\n{self.text()[-3000:]}")
        return int(self.process.returncode)


def stream_lines(*logs: Path) -> dict[int, tuple[int, int, int]]:
    """What env-servers said of their streams when they ended: life -> (unrolls, steps, frames)."""
    lines = "\n".join(path.read_text() for path in logs)
    found = re.findall(r"stream \S+ life (\d+): (\d+) steps and (\d+) frames in (\d+) unrolls", lines)
    return {int(life): (int(unrolls), int(steps), int(frames)) for life, steps, frames, unrolls in found}
