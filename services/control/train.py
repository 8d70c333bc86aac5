"""Runs one job from its config to its summary: an engine, a monitor that watches it and a view that shows it.

The composition root of `headrace train`; what each part does is its own file's business.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from common.config import Config
from services.control.board import Board
from services.control.compose import local_plan, private_dir
from services.control.engines.local import LocalEngine
from services.control.monitor import Monitor, Snapshot, Source, http_source
from services.control.run_dir import RunDir
from services.control.words import clock, count, number

if TYPE_CHECKING:
    from services.control.display import View

REFRESH_S = 0.25

# What result.json calls the job's end, in words.
OUTCOMES = {
    "solved": "solved",
    "steps": "step limit reached",
    "frames": "frame limit reached",
    "seconds": "time limit reached",
    "stopped": "stopped",
}


class Engine(Protocol):
    """Runs a job; `started` is set once every process has been started."""

    started: asyncio.Event

    @property
    def interrupted(self) -> bool: ...

    async def run(self) -> int: ...


def train_local(config: Config, run: RunDir, environ: Mapping[str, str]) -> int:
    """Trains with one process per service; gives the exit code, raises the HeadraceError that ended the job."""
    sockets = private_dir()
    try:
        plan = local_plan(config, run.path, sockets)
        board = Board()
        return asyncio.run(_run(config, run, LocalEngine(plan, board, environ), board, http_source(plan)))
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def train_inline(config: Config, run: RunDir) -> int:
    """Trains with all services in this process, which loads torch and everything else into it."""
    from services.control.engines.inline import InlineEngine

    board = Board()
    engine = InlineEngine(config, run.path, board)
    return asyncio.run(_run(config, run, engine, board, engine.source))


async def _run(config: Config, run: RunDir, engine: Engine, board: Board, source: Source) -> int:
    began = time.monotonic()
    job = asyncio.create_task(engine.run())
    started = asyncio.create_task(engine.started.wait())
    await asyncio.wait([job, started], return_when=asyncio.FIRST_COMPLETED)
    # The services are on their way: what this process still has to load no longer delays them.
    from rich.console import Console

    from services.control.display import job_of, make_view

    console = Console()
    monitor = Monitor(board, source, config.stop.episode_return)
    polling = asyncio.create_task(monitor.poll_forever())
    view = make_view(job_of(config, run.path), console)
    try:
        while not job.done():
            # All four roles have a part in an update: no setting of this start will be refused any more.
            run.begun = run.begun or bool(monitor.snapshot.updates)
            show(view, board, monitor.snapshot)
            await asyncio.wait([job], timeout=REFRESH_S)
    finally:
        polling.cancel()
        started.cancel()
        monitor.refresh(time.monotonic())
        ended = _read_result(run.path / "result.json")
        show(view, board, _final(monitor.snapshot, ended))
        view.close()
    code = job.result()
    with suppress(OSError):  # the terminal may be gone by now
        for text in summary(run.path, ended, time.monotonic() - began, engine.interrupted):
            console.print(text, highlight=False, soft_wrap=True)
    return code


def show(view: View, board: Board, snapshot: Snapshot) -> None:
    """Shows what was said since the last time, and the snapshot."""
    try:
        while board.notices:
            view.notice(board.notices.popleft())
        view.update(snapshot)
    except OSError:
        # The terminal is gone: the job goes on without it, or ends by SIGHUP.
        board.notices.clear()


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _final(snapshot: Snapshot, ended: Mapping[str, Any]) -> Snapshot:
    """Puts the learner's own last figures in place of the last poll's, which are up to half a second old."""
    if not ended:
        return snapshot
    return replace(
        snapshot,
        steps=ended.get("steps", snapshot.steps),
        frames=ended.get("frames", snapshot.frames),
        updates=ended.get("updates", snapshot.updates),
        episode_return=ended.get("episode_return", snapshot.episode_return),
        progress=snapshot.progress if ended.get("outcome") == "stopped" else 1.0,
        eta_s=None,
    )


def summary(run_dir: Path, ended: Mapping[str, Any], seconds: float, interrupted: bool) -> list[str]:
    """Gives the last lines of a job, with rich markup: its outcome and what to do next."""
    outcome = str(ended.get("outcome", "stopped" if interrupted else "ended"))
    style = "bold green" if outcome == "solved" else "bold"
    figures = [
        clock(seconds),
        f"{count(ended.get('steps'))} steps",
        f"{count(ended.get('updates'))} updates",
        f"mean return {number(ended.get('episode_return'))}",
    ]
    lines = [f"[{style}]{OUTCOMES.get(outcome, outcome)}[/]  " + (" · ".join(figures) if ended else clock(seconds))]
    lines.append(f"[dim]run      [/] {run_dir}")
    if interrupted:
        lines.append(f"resume with: headrace train --resume {run_dir}")
    else:
        lines.append(f"[dim]evaluate [/] headrace evaluate {run_dir}")
        lines.append(f"[dim]plot     [/] headrace plot {run_dir}")
    return lines
