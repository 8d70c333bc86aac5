"""A service's life: arguments, logging, signals, /metrics and /healthz on a thread of their own, and its exit code.

Knows no role: a role is a coroutine `run(context)`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from common import log as logs
from common.allocator import keep_freed_memory
from common.arguments import service_arguments
from common.config import Config
from common.errors import ConfigError, Finished, HeadraceError
from common.files import write_whole
from common.messages import PROTOCOL, Hello, Welcome
from common.metrics import ServiceMetrics
from common.transport.client import Client
from common.types import new_life

log = logging.getLogger("headrace.service")
HTTP_S = 10.0  # to one who asks: a connection that says nothing, or is not read from, is closed
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What a service is told on its command line, besides its settings.
_GIVEN = ("index", "name", "restarts", "earlier_lives", "run_dir")

Run = Callable[["Context"], Awaitable[None]]


class Health:
    """What a service says of itself: live by answering, ready, whom it waits for and since when, its last notice."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._waiting: dict[str, tuple[str, float]] = {}
        self.ready = False
        self.notice: str | None = None

    def waiting(self, key: str) -> Callable[[str | None], None]:
        """Gives the function through which one client or queue says what it waits for."""

        def say(text: str | None) -> None:
            if text is None:
                self._waiting.pop(key, None)
            else:
                since = self._waiting[key][1] if key in self._waiting else time.monotonic()
                self._waiting[key] = (text, since)

        return say

    def say(self, notice: str) -> None:
        """Says something aloud: in the log, on /healthz and in the display."""
        log.warning("%s", notice)
        self.notice = notice

    def report(self) -> dict[str, Any]:
        now = time.monotonic()
        text, since = min(list(self._waiting.values()), key=lambda item: item[1], default=(None, now))
        return {
            "ready": self.ready,
            "waiting_for": text,
            "waiting_s": round(now - since, 1),
            "uptime_s": round(now - self._started, 1),
            "notice": self.notice,
        }


@dataclass(frozen=True)
class Context:
    """What a service is given; `index` is its number among its role's, `life_number` counts its lives in the run."""

    config: Config
    role: str
    name: str
    index: int
    life_number: int
    run_dir: Path | None
    registry: CollectorRegistry
    metrics: ServiceMetrics
    health: Health = field(default_factory=Health)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    life: int = field(default_factory=new_life)

    def hello(self, spec: dict[str, Any] | None = None, streams: tuple[tuple[str, int], ...] = ()) -> Hello:
        """Gives this process's first words to a server."""
        return Hello(PROTOCOL, self.role, self.name, self.life, spec, streams)


def make_context(
    config: Config,
    role: str,
    *,
    index: int = 0,
    name: str = "",
    restarts: int = 0,
    earlier_lives: int = 0,
    run_dir: Path | None = None,
) -> Context:
    """Gives a Context with a registry of its own."""
    registry = CollectorRegistry()
    metrics = ServiceMetrics(role, registry)
    metrics.restarts.set(restarts)
    metrics.start.set_to_current_time()
    name = name or (role if role == "learner" else f"{role}-{index}")
    return Context(config, role, name, index, earlier_lives + restarts, run_dir, registry, metrics)


def connect(
    context: Context,
    address: str,
    role: str,
    *,
    max_in_flight: int,
    hello: Hello | None = None,
    replaceable: bool = False,
) -> Client:
    """Gives a Client of the server of `role` at `address`, which tells /healthz whom it waits for."""
    return Client(
        address,
        f"{role}-server",
        hello or context.hello(),
        net=context.config.net,
        metrics=context.metrics,
        max_in_flight=max_in_flight,
        waiting=context.health.waiting(f"{role} {address}"),
        replaceable=replaceable,
    )


async def first_welcome(clients: Sequence[Client]) -> Welcome:
    """Gives the Welcome of whichever server says it first; raises what Client.welcome does."""
    welcomes = [asyncio.ensure_future(client.welcome()) for client in clients]
    try:
        done, _ = await asyncio.wait(welcomes, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for welcome in welcomes:
            welcome.cancel()


def main(role: str, run: Run, argv: Sequence[str] | None = None) -> int:
    """Runs a service by itself until it is done or told to stop; gives its exit code."""
    logs.set_up(role)
    try:
        arguments = service_arguments(role, argv)
        context = make_context(arguments.config, role, **{name: getattr(arguments, name) for name in _GIVEN})
        logs.set_up(context.name)
        keep_freed_memory()
        with suppress(ValueError, OSError):  # each peer takes a file; shells allow 1,024
            resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda *_: context.stopping.set())  # until the loop has its own handlers
        http = serve_http(context)
    except HeadraceError as error:
        log.error("error: %s", error)
        return error.exit_code
    if arguments.announce is not None:
        here = "127.0.0.1" if (host := arguments.config.metrics.host) in ("", "0.0.0.0") else host
        write_whole(arguments.announce, f"http://{here}:{http.server_port}")
    try:
        return _run_loop(context, run)
    finally:
        http.shutdown()
        http.server_close()
        gc.freeze()  # The interpreter's last collection takes a second where torch is loaded.


def _run_loop(context: Context, run: Run) -> int:
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):  # it is not on every platform
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(supervise(context, run))


async def supervise(context: Context, run: Run) -> int:
    """Runs a role until it ends, says why it ended, and gives its exit code."""
    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, context.stopping.set)
    try:
        await run(context)
    except Finished as finished:
        log.info("finished: %s", finished.message)
    except HeadraceError as error:
        log.error("error: %s", error)
        return error.exit_code
    except OSError as error:
        log.exception("error: %s (is a disk full, or a limit on open files reached?)", error)
        return HeadraceError.exit_code
    if context.stopping.is_set():
        log.info("stopped")
    return 0


async def until_stopped(context: Context, work: Iterable[Awaitable[Any]]) -> None:
    """Runs `work` together until all of it ends, one part fails, or the service is told to stop."""
    stop = asyncio.ensure_future(context.stopping.wait())
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        pending: set[asyncio.Future[Any]] = set(tasks)
        while pending and not stop.done():
            done, pending = await asyncio.wait({*pending, stop}, return_when=asyncio.FIRST_COMPLETED)
            pending.discard(stop)
            for task in done - {stop}:
                task.result()
    finally:
        for task in [stop, *tasks]:
            task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)


def serve_http(context: Context) -> ThreadingHTTPServer:
    """Serves /metrics, /healthz and /readyz from a daemon thread, so that they answer whatever the loop does."""
    identity = {"role": context.role, "name": context.name, "pid": os.getpid()}

    class Handler(BaseHTTPRequestHandler):
        timeout = HTTP_S

        def do_GET(self) -> None:
            report = context.health.report()
            if self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4", generate_latest(context.registry))
            elif self.path == "/healthz":
                self._answer(200, "application/json", json.dumps({**identity, **report}).encode())
            elif self.path == "/readyz":
                self._answer(200 if report["ready"] else 503, "application/json", json.dumps(report).encode())
            else:
                self._answer(404, "text/plain", b"try /metrics, /healthz or /readyz\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # who asked has gone: it waits no longer than it likes
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Scrapes are no news."""

    where = context.config.metrics
    try:
        server = ThreadingHTTPServer((where.host, where.port), Handler)
    except OSError as error:
        raise ConfigError(f"metrics.port={where.port} on {where.host}: {error.strerror}", "set another, or 0") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True).start()
    log.info("metrics on http://%s:%d/metrics", where.host, server.server_port)
    return server
