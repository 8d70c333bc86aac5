"""Watches a job that already runs, from its services' own /metrics and /healthz: `headrace top`.

Owns the finding of services; what their numbers mean is `monitor.py`'s business, how they are shown `display.py`'s.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from common.config import StopConfig
from common.errors import ConfigError, HeadraceError
from services.control.board import Board, ProcessState
from services.control.compose import private_dirs
from services.control.monitor import Monitor
from services.control.readings import Reading, labelled, read, total
from services.control.train import REFRESH_S, show

if TYPE_CHECKING:
    from rich.console import Console

    from services.control.display import Job, View

PORT = 9400  # what docker-compose.yml and the Kubernetes manifests set metrics.port to
FIND_S = 2.0
LOST_S = 10.0

Addresses = Callable[[], Awaitable[list[str]]]


def named(targets: Sequence[str]) -> Addresses:
    """Gives the addresses behind `targets`, URLs or host names; a name stands for all that it resolves to."""
    try:
        parts = [urlsplit(target if "//" in target else f"//{target}") for target in targets]
        places = [(part.hostname, part.port or PORT) for part in parts]
    except ValueError as error:
        raise ConfigError(f"--targets {','.join(targets)}: {error}", "write http://host:port") from None
    for target, (host, _) in zip(targets, places, strict=True):
        if not host:
            raise ConfigError(f"--targets {target!r} names no host", "write http://host:port")

    async def addresses() -> list[str]:
        found = await asyncio.gather(*(_resolve(str(host), port) for host, port in places))
        return list(dict.fromkeys(url for urls in found for url in urls))

    return addresses


async def _resolve(host: str, port: int) -> list[str]:
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    ips = dict.fromkeys(str(entry[4][0]) for entry in entries)
    # A name with both families is one service twice: "localhost" most of all.
    four = [ip for ip in ips if ":" not in ip]
    return [f"http://{ip}:{port}" for ip in four] or [f"http://[{ip}]:{port}" for ip in ips]


def announced(directory: Path) -> Addresses:
    """Gives the addresses that a local job's services have written into its private directory."""

    async def addresses() -> list[str]:
        return _written(directory)

    return addresses


def _written(directory: Path) -> list[str]:
    urls = []
    for path in sorted(directory.glob("*.url")):
        with suppress(OSError):  # a service that starts again takes its file away first
            urls.append(path.read_text().strip())
    return urls


async def local_job(directories: Iterable[Path]) -> Addresses:
    """Gives the addresses of the first of `directories` in which a service answers."""
    for directory in directories:
        addresses = announced(directory)
        if any(await asyncio.gather(*(read(url, health_only=True) for url in await addresses()))):
            return addresses
    raise HeadraceError("no job of yours runs on this machine", "name its services with --targets http://host:port,…")


class Targets:
    """The services behind addresses that come and go: keeps `board` up to date with them, and is a monitor's source."""

    def __init__(self, addresses: Addresses, board: Board) -> None:
        self._addresses = addresses
        self._board = board
        self._names: dict[str, str] = {}
        self.learner: Reading | None = None
        self.heard = time.monotonic()

    async def find_forever(self) -> None:
        while True:
            await asyncio.sleep(FIND_S)
            await self.find()

    async def find(self) -> None:
        """Adds services that have come to the board, and takes off those whose address is no more."""
        urls = await self._addresses()
        for url in set(self._names) - set(urls):
            self._forget(url)
        new = [url for url in urls if url not in self._names]
        for url, reading in zip(new, await asyncio.gather(*(read(url, True) for url in new)), strict=True):
            if reading is not None:
                self._add(url, reading.health)

    async def source(self, state: ProcessState) -> Reading | None:
        """Gives what a service says of itself, and notes who it is."""
        url = next((url for url, name in self._names.items() if name == state.name), None)
        reading = await read(url) if url else None
        if url is None or reading is None:
            return None
        self.heard = time.monotonic()
        if self._name(url, reading.health) != state.name:
            # Another process has this address now; it is found again under its own name.
            self._forget(url)
            return None
        state.pid = int(reading.health.get("pid", 0))
        state.restarts = int(total(reading.samples, f"headrace_{state.role}_restarts") or 0)
        if state.role == "learner":
            self.learner = reading
        return reading

    @property
    def lost(self) -> bool:
        """Whether nothing is left to watch."""
        return not self._board.processes or time.monotonic() - self.heard > LOST_S

    def _add(self, url: str, health: dict[str, Any]) -> None:
        name = self._name(url, health)
        self._names[url] = name
        self._board.processes[name] = ProcessState(name, str(health.get("role", "?")), "running", life=1)

    def _forget(self, url: str) -> None:
        name = self._names.pop(url, None)
        if name is not None:
            self._board.processes.pop(name, None)

    def _name(self, url: str, health: dict[str, Any]) -> str:
        """Gives a service's own name, with its address where two have the same."""
        name = str(health.get("name", url))
        taken = any(other == name and where != url for where, other in self._names.items())
        return f"{name} {urlsplit(url).netloc}" if taken else name


def job_seen(learner: Reading | None) -> Job:
    """Gives what a learner says of its job."""
    from services.control.display import Job, title

    found = labelled(learner.samples, "headrace_learner_job_info") if learner else []
    if learner is None or not found:
        return Job("no learner answers yet", "", None)
    names, _ = found[0]
    limits = {labels["setting"]: limit for labels, limit in labelled(learner.samples, "headrace_learner_stop_limit")}
    stop = StopConfig(**{key: limit for key, limit in limits.items() if key in StopConfig.model_fields})
    return Job(title(names["algorithm"], names["env"]), names["run"], stop)


def top(targets: Sequence[str]) -> int:
    """Shows the job behind `targets`, or this user's newest on this machine, until it ends or Ctrl-C."""
    return asyncio.run(_top(targets))


async def _top(targets: Sequence[str]) -> int:
    from rich.console import Console

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    addresses = named(targets) if targets else await local_job(private_dirs())
    return await watch(addresses, Console(), stop)


async def watch(addresses: Addresses, console: Console, stop: asyncio.Event) -> int:
    """Shows the services at `addresses` until `stop` is set or none of them answers any more."""
    board = Board()
    targets = Targets(addresses, board)
    await targets.find()
    if not board.processes:
        where = ", ".join(await addresses()) or "these names, which resolve to no address"
        raise HeadraceError(f"nothing answers at {where}", "see each service's log for the address of its metrics")
    monitor = Monitor(board, targets.source)
    await monitor.poll()
    tasks = [asyncio.create_task(monitor.poll_forever()), asyncio.create_task(targets.find_forever())]
    try:
        await _show(monitor, targets, board, console, stop)
    finally:
        for task in tasks:
            task.cancel()
    if targets.lost:
        console.print("the job has ended: none of its services answers any more")
    return 0


async def _show(monitor: Monitor, targets: Targets, board: Board, console: Console, stop: asyncio.Event) -> None:
    from services.control.display import make_view

    shown: Job | None = None
    view: View | None = None
    try:
        while not stop.is_set() and not targets.lost:
            job = job_seen(targets.learner)
            if view is None or job != shown:
                if view is not None:
                    view.close()
                shown, view = job, make_view(job, console)
                monitor.goal = job.stop.episode_return if job.stop else None
                if targets.learner is not None:
                    monitor.started = time.monotonic() - float(targets.learner.health.get("uptime_s", 0.0))
                    monitor.refresh(time.monotonic())
            show(view, board, monitor.snapshot)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), REFRESH_S)
    finally:
        if view is not None:
            view.close()
