"""Shows a running job: a live panel on a terminal, a plain line every few seconds elsewhere.

Knows Snapshots and words, nothing of processes or sockets.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.config import Config, StopConfig
from services.control.monitor import ProcessRow, Snapshot
from services.control.words import UNKNOWN, clock, count, goal, number, percent, sparkline

LINE_S = 5.0
CURVE_COLUMNS = 32
WIDTH = 88
ROW_LIMIT = 16


@dataclass(frozen=True, slots=True)
class Job:
    """What is said of a job besides its figures: what it trains, where its run is, what ends it (None: not known)."""

    title: str
    run: str
    stop: StopConfig | None

    def goal(self, now: float | None = None) -> str:
        return UNKNOWN if self.stop is None else goal(self.stop, now)


def job_of(config: Config, run_dir: Path) -> Job:
    """Gives what is said of the job that `config` describes."""
    return Job(title(str(config.algorithm.get("name", "?")), config.env.id), str(run_dir), config.stop)


def title(algorithm: str, env: str) -> str:
    return f"{algorithm} · {env}"


class View(Protocol):
    """What shows a job; `update` is called several times a second."""

    def notice(self, text: str) -> None: ...

    def update(self, snapshot: Snapshot) -> None: ...

    def close(self) -> None: ...


def make_view(job: Job, console: Console) -> View:
    """Gives the live panel on a terminal, plain lines anywhere else."""
    return LiveView(job, console) if console.is_terminal else PlainView(job, console)


class LiveView:
    """A panel that is drawn in place, with notices above it."""

    def __init__(self, job: Job, console: Console) -> None:
        self._job = job
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._shown: Snapshot | None = None
        self._live.start()

    def notice(self, text: str) -> None:
        line = Text(f"{time.strftime('%H:%M:%S')}  ", style="dim")
        line.append(text, style="not dim yellow")
        self._console.print(line)

    def update(self, snapshot: Snapshot) -> None:
        if snapshot is not self._shown:
            self._shown = snapshot
            self._live.update(panel(self._job, snapshot), refresh=True)

    def close(self) -> None:
        with suppress(OSError):  # a terminal that is gone ends no job
            self._live.stop()


class PlainView:
    """One line when there is something to say, and every few seconds."""

    def __init__(self, job: Job, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._print(f"headrace {job.title}  run {job.run}")
        self._print(f"goal {job.goal()}")

    def notice(self, text: str) -> None:
        self._print(f"{time.strftime('%H:%M:%S')} {text}")

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.seconds >= self._next:
            self._next = snapshot.seconds + LINE_S
            self._print(line(snapshot))

    def close(self) -> None: ...

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def line(s: Snapshot) -> str:
    """Writes a snapshot as one plain line; what is not well with a process comes last."""
    parts = [
        f"{clock(s.seconds):>6}",
        *(() if s.progress is None else (f"{percent(s.progress):>4}",)),
        f"return {number(s.episode_return)}",
        f"steps {count(s.steps)} ({count(s.steps_s)}/s, trained {count(s.trained_steps_s)}/s)",
        f"frames {count(s.frames)}",
        f"lag {count(s.policy_lag)}",
    ]
    if s.eta_s is not None:
        parts.append(f"eta {clock(s.eta_s)}")
    if s.bottleneck:
        parts.append(f"busiest {s.bottleneck}")
    parts += [f"{row.name} {row.state}" for row in s.processes if not row.good]
    return "  ".join(parts)


def panel(job: Job, s: Snapshot) -> RenderableType:
    """Draws a snapshot as the panel of the live display."""
    head = Text.assemble((" headrace ", "bold black on cyan"), " ", (job.title, "bold"), " ")
    body = Group(_progress(s), Text(), _figures(job, s), Text(), _processes(s.processes))
    return Panel(
        body,
        title=head,
        title_align="left",
        subtitle=Text(f" {job.run} ", style="dim"),
        subtitle_align="right",
        box=ROUNDED,
        border_style="cyan",
        padding=(1, 2),
        width=WIDTH,
    )


def _progress(s: Snapshot) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", min_width=4)
    grid.add_column(justify="right", style="dim", min_width=24)
    if s.progress is None:
        grid.add_row("", "", clock(s.seconds))
        return grid
    left = f", {clock(s.eta_s)} left" if s.eta_s is not None else ""
    colour = "green" if s.progress >= 1.0 else "cyan"
    bar = ProgressBar(total=1.0, completed=s.progress, complete_style=colour, finished_style="green")
    grid.add_row(bar, Text(percent(s.progress), style=f"bold {colour}"), f"{clock(s.seconds)}{left}")
    return grid


def _figures(job: Job, s: Snapshot) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", min_width=9)
    grid.add_column()
    shown = Text.assemble((number(s.episode_return), "bold"), "  ", (sparkline(s.returns, CURVE_COLUMNS), "cyan"))
    if s.episodes:
        shown.append(f"  {count(s.episodes)} episodes of {number(s.episode_length)} steps", style="dim")
    queues = " · ".join(f"{word} {count(depth)}" for word, depth in s.queues) or UNKNOWN
    waits = Text.assemble(("lag ", "dim"), count(s.policy_lag), ("    queues ", "dim"), queues)
    if s.bottleneck:
        waits.append("    busiest ", style="dim")
        waits.append(s.bottleneck, style="magenta")
    grid.add_row("goal", job.goal(s.episode_return))
    grid.add_row("return", shown)
    grid.add_row("collected", _pace(s.steps_s, s.frames_s, f"{count(s.steps)} steps · {count(s.frames)} frames"))
    grid.add_row("trained", _pace(s.trained_steps_s, None, f"{count(s.updates)} updates"))
    grid.add_row("policy", waits)
    return grid


def _pace(steps_s: float | None, frames_s: float | None, totals: str) -> Text:
    text = Text.assemble((f"{count(steps_s):>5}", "bold"), " steps/s")
    text.append(f"  {count(frames_s):>5} frames/s" if frames_s is not None else " " * 16)
    text.append(f"    {totals}", style="dim")
    return text


def _processes(rows: tuple[ProcessRow, ...]) -> RenderableType:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("process", min_width=11, no_wrap=True)
    table.add_column("pid", justify="right", style="dim", min_width=7)
    table.add_column("restarts", justify="right", min_width=8)
    table.add_column("state", min_width=46, max_width=46, overflow="ellipsis", no_wrap=True)
    # Rows that are not well come first where not all of them fit.
    shown = rows if len(rows) <= ROW_LIMIT else sorted(rows, key=lambda row: row.good)[:ROW_LIMIT]
    for row in shown:
        colour = "green" if row.state == "ready" else "dim" if row.good else "yellow"
        state = Text.assemble(("● ", colour), (row.state, "default" if row.good else "yellow"))
        table.add_row(row.name, str(row.pid or ""), str(row.restarts or "·"), state)
    if len(shown) < len(rows):
        table.add_row(f"and {len(rows) - len(shown)} more", "", "", "")
    return table
