"""The local engine: each service a process of this machine, started at once, restarted when it crashes.

Owns the processes' lives and the job's exit; knows nothing of what they compute. How nothing stays behind, even when
control itself is killed, is `guardian.py`'s story.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from common.errors import ConfigError, HeadraceError
from services.control.board import Board, ProcessState
from services.control.compose import Plan, Process
from services.control.engines import guardian
from services.control.engines.restarts import CRASHES, LONG_S, Restarts

DRAIN_S = 60.0
GRACE_S = 5.0
KILLED = 130
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LOG_LINES = 20


class LocalEngine:
    """Runs a plan to its end. `run` gives the exit code, or raises the HeadraceError that ended the job."""

    def __init__(self, plan: Plan, board: Board, environ: Mapping[str, str]) -> None:
        self._plan = plan
        self._board = board
        self._environ = dict(environ)
        self._group: subprocess.Popen[bytes] | None = None
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._failure: HeadraceError | None = None
        self._drain_code = 0
        self._interrupted = self._killed = False
        self.started = asyncio.Event()
        for process in plan.processes:
            board.processes[process.name] = ProcessState(process.name, process.role)

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the job, not its goal."""
        return self._interrupted

    async def run(self) -> int:
        catch_signals(self._signalled)
        self._group = guardian.start(str(self._plan.sockets))
        try:
            keepers = {process.name: asyncio.create_task(self._keep(process)) for process in self._plan.processes}
            for keeper in keepers.values():
                keeper.add_done_callback(self._kept)
            await self._end(keepers)
            for keeper in keepers.values():
                keeper.result()
        finally:
            self._clear()
        if self._failure is not None:
            raise self._failure
        return KILLED if self._killed else self._drain_code

    async def _end(self, keepers: Mapping[str, asyncio.Task[None]]) -> None:
        """Waits for the learner's end, or for whatever stops the job before it, and ends the rest in order."""
        stopping = asyncio.create_task(self._stopping.wait())
        others = [name for name in keepers if name != "learner"]
        await asyncio.wait([stopping, keepers["learner"]], return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            # The learner first and alone: it writes its checkpoint while its peers still answer.
            await self._terminate(["learner"], keepers, DRAIN_S)
        else:
            self._stopping.set()
            for name in others:
                self._mark_stopping(name)
            await _wait(others, keepers, self._plan.config.net.linger_s)
        await self._terminate(others, keepers, GRACE_S)
        await stopping

    async def _keep(self, process: Process) -> None:
        """Runs one process again and again until the job or the process ends for good."""
        restarts = Restarts(random.Random())
        while not self._stopping.is_set():
            born = time.monotonic()
            try:
                code = await self._live(process, restarts.count)
            except OSError as error:
                self._fail(HeadraceError(f"{process.name} cannot be started: {error}", "free memory or process slots"))
                return
            delay = await self._judge(process, code, restarts, time.monotonic() - born)
            if delay is None:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _live(self, process: Process, restarts: int) -> int:
        """Runs one life of a process; gives its exit code, negative for the signal that killed it."""
        assert self._group is not None
        state = self._board.processes[process.name]
        process.announce.unlink(missing_ok=True)
        process.log.parent.mkdir(exist_ok=True)
        environ = self._environ | {name: str(process.threads) for name in THREAD_VARIABLES}
        with process.log.open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *process.argv,
                *(("--restarts", str(restarts)) if restarts else ()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                process_group=self._group.pid,
            )
        self._children[process.name] = child
        state.phase, state.pid, state.restarts, state.life = "running", child.pid, restarts, state.life + 1
        if len(self._children) == len(self._plan.processes):
            self.started.set()
        if self._stopping.is_set():
            # Whoever asked the others to end did not know this one yet.
            child.terminate()
        return await child.wait()

    async def _judge(self, process: Process, code: int, restarts: Restarts, lived_s: float) -> float | None:
        """Gives the delay before the process starts again, or None when it shall not."""
        state = self._board.processes[process.name]
        state.phase = "ended"
        said = f"{process.name} (pid {state.pid}) {_exit(code)}"
        if self._stopping.is_set():
            self._note_drain(process, code)
            return None
        if code == 0:
            if process.role == "learner" or await self._job_ends():
                return None
            said += " though the job goes on"
        elif code == ConfigError.exit_code:
            self._fail(_config_error(process))
            return None
        elif code > 0:
            said += ": " + (_tail(process, 1) or ["its log is empty"])[0]
        delay = restarts.crashed(lived_s)
        if delay is None:
            lines = "\n".join(f"  {line}" for line in _tail(process, LOG_LINES))
            self._board.say(f"{said}\nthe last lines of {process.log}:\n{lines}")
            text = f"{process.name} crashed {CRASHES} times in a row, each time within {LONG_S:.0f} s"
            self._fail(HeadraceError(text, f"see {process.log}"))
            return None
        state.phase = "restarting"
        self._board.say(f"{said}; restarting in {delay:.1f} s ({restarts.count})")
        return delay

    async def _job_ends(self) -> bool:
        """Whether the job ends soon: a service that hears of the end before control does has not crashed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._plan.config.net.linger_s)
        # The learner writes its result and then tells everybody for as long again, so it may well end after them.
        return self._stopping.is_set() or (self._plan.run_dir / "result.json").exists()

    def _note_drain(self, process: Process, code: int) -> None:
        if process.role != "learner" or code in (0, -signal.SIGTERM) or self._killed:
            return
        self._drain_code = 1
        self._board.say(f"{process.name} {_exit(code)} while it was stopping; what it learned last may not be saved")

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and keeper.exception() is not None:
            self._stopping.set()

    def _fail(self, error: HeadraceError) -> None:
        self._failure = self._failure or error
        self._stopping.set()

    def _signalled(self, number: signal.Signals) -> None:
        if self._interrupted:
            if number == signal.SIGINT:
                self._killed = True
                self._board.say("stopping now")
                self._signal_group(signal.SIGKILL)
            return
        self._interrupted = True
        if self._stopping.is_set():
            for name in self._children:
                self._signal(name, signal.SIGTERM)
            return
        self._board.say(f"{number.name}: stopping after a checkpoint; Ctrl-C stops at once")
        self._stopping.set()

    async def _terminate(
        self, names: Iterable[str], keepers: Mapping[str, asyncio.Task[None]], patience_s: float
    ) -> None:
        """Ends the named processes: SIGTERM, and SIGKILL for those that are still there after `patience_s`."""
        for name in names:
            self._mark_stopping(name)
            self._signal(name, signal.SIGTERM)
        for name in await _wait(names, keepers, patience_s):
            self._board.say(f"{name} did not end within {patience_s:.0f} s and was killed")
            self._signal(name, signal.SIGKILL)
        await _wait(names, keepers, GRACE_S)

    def _mark_stopping(self, name: str) -> None:
        state = self._board.processes[name]
        if state.phase == "running":
            state.phase = "stopping"

    def _signal(self, name: str, number: signal.Signals) -> None:
        child = self._children.get(name)
        if child is not None and child.returncode is None:
            with suppress(ProcessLookupError):
                child.send_signal(number)

    def _signal_group(self, number: signal.Signals) -> None:
        assert self._group is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group.pid, number)

    def _clear(self) -> None:
        """Ends what is left of the group, the guardian and services' own children included, and the directory."""
        assert self._group is not None
        self._signal_group(signal.SIGKILL)
        self._group.wait()
        assert self._group.stdin is not None
        self._group.stdin.close()
        shutil.rmtree(self._plan.sockets, ignore_errors=True)


def catch_signals(handle: Callable[[signal.Signals], None]) -> None:
    """Calls `handle` with each signal that ends a job."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means what it says
            loop.add_signal_handler(number, handle, number)


async def _wait(names: Iterable[str], keepers: Mapping[str, asyncio.Task[None]], timeout_s: float) -> list[str]:
    """Waits for the keepers of `names`; gives the names of those that are still running."""
    tasks = {keepers[name]: name for name in names}
    if not tasks:
        return []
    _, pending = await asyncio.wait(tasks, timeout=timeout_s)
    return [name for task, name in tasks.items() if task in pending]


def _exit(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _tail(process: Process, lines: int) -> list[str]:
    """Gives the last non-empty lines of a process's log."""
    with process.log.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 16384))
        text = log.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _config_error(process: Process) -> ConfigError:
    """Gives the error that a service has logged, in its own words: its log may be taken away with the run."""
    lines = _tail(process, LOG_LINES) or ["its log is empty"]
    said = [line.partition("error: ")[2] for line in lines if "error: " in line]
    message, remedy = _parted(said[-1] if said else lines[-1])
    return ConfigError(f"{process.name}: {message}", remedy)


def _parted(text: str) -> tuple[str, str]:
    """Parts what HeadraceError has joined: gives the message, and the remedy, which is in brackets after it."""
    depth = 0
    for at in range(len(text) - 1, 0, -1):
        depth += (text[at] == ")") - (text[at] == "(")
        if depth == 0:
            return (text[: at - 1], text[at + 1 : -1]) if text[at - 1 : at + 1] == " (" else (text, "")
    return text, ""
