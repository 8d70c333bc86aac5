"""The inline engine: the four roles in one process and on one loop, over `inproc://`, for debugging and tests.

The same services through the same contexts as separate processes. Nothing is restarted; a crash shows its traceback.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from importlib import import_module
from pathlib import Path

from prometheus_client import generate_latest

from common.config import Config
from common.errors import Finished
from common.service import Context, make_context
from services.control.board import Board, ProcessState
from services.control.compose import earlier_lives, place, services
from services.control.engines.local import DRAIN_S, GRACE_S, KILLED, catch_signals
from services.control.readings import Reading, parse_metrics


class InlineEngine:
    """Runs a job in this process. `run` gives the exit code, or raises what ended the job."""

    def __init__(self, config: Config, run_dir: Path, board: Board) -> None:
        self._config = place(config, lambda name: f"inproc://{name}")
        self._board = board
        self._log = run_dir / "logs" / "inline.log"
        self._contexts: dict[str, Context] = {}
        self._stopping = asyncio.Event()
        self._interrupted = False
        self.started = asyncio.Event()
        for role, name, index in services(self._config):
            self._contexts[name] = make_context(
                self._config, role, index=index, earlier_lives=earlier_lives(run_dir), run_dir=run_dir
            )
            board.processes[name] = ProcessState(name, role)

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the job, not its goal."""
        return self._interrupted

    async def source(self, state: ProcessState) -> Reading | None:
        """Gives what a service says of itself, as it would over HTTP."""
        context = self._contexts[state.name]
        return Reading(parse_metrics(generate_latest(context.registry).decode()), context.health.report())

    async def run(self) -> int:
        self._log.parent.mkdir(exist_ok=True)
        logging.basicConfig(filename=self._log, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        catch_signals(self._signalled)
        tasks = {name: asyncio.create_task(self._live(context)) for name, context in self._contexts.items()}
        self.started.set()
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            # A service that ends by itself ends before its time only by an error; the learner's end is the job's.
            waiting = {stopping, *tasks.values()}
            while not stopping.done() and not tasks["learner"].done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            await self._end(tasks)
        finally:
            for task in [stopping, *tasks.values()]:
                task.cancel()
            await asyncio.gather(stopping, *tasks.values(), return_exceptions=True)
        return 0

    async def _end(self, tasks: dict[str, asyncio.Task[None]]) -> None:
        learner = tasks["learner"]
        others = [task for task in tasks.values() if task is not learner]
        if self._stopping.is_set():
            self._contexts["learner"].stopping.set()
            await asyncio.wait([learner], timeout=DRAIN_S)
        # Nobody here needs to be told over a socket that the job is done.
        for name, context in self._contexts.items():
            if self._board.processes[name].phase == "running":
                self._board.processes[name].phase = "stopping"
            context.stopping.set()
        await asyncio.wait(others, timeout=GRACE_S)
        for task in tasks.values():
            if task.done():
                task.result()

    async def _live(self, context: Context) -> None:
        state = self._board.processes[context.name]
        state.phase, state.pid, state.life = "running", os.getpid(), 1
        run = import_module(f"services.{context.role}_server.server").run
        try:
            await run(context)
        except Finished:
            pass
        except Exception as error:
            error.add_note(f"raised in {context.name}")
            raise
        finally:
            state.phase = "ended"

    def _signalled(self, number: signal.Signals) -> None:
        if self._interrupted:
            if number == signal.SIGINT:
                # Threads that compute cannot be cancelled, and "now" means now.
                os._exit(KILLED)
            return
        self._interrupted = True
        self._board.say(f"{number.name}: stopping after a checkpoint; Ctrl-C stops at once")
        self._stopping.set()
