"""Shows a tuning: a live panel on a terminal, a line per measurement elsewhere."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.control.tune.search import Point
from services.control.tune.tuner import Tuning
from services.control.words import clock, count

SHOWN = 8


def make_view(console: Console) -> LiveView | LineView:
    """Gives the live panel on a terminal, plain lines anywhere else."""
    return LiveView(console) if console.is_terminal else LineView(console)


class LineView:
    """One line per measurement."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def measuring(self, tuning: Tuning, point: Point) -> None: ...

    def measured(self, tuning: Tuning, point: Point, rate: float) -> None:
        best = tuning.search.best
        line = f"{min(1.0, tuning.spent):4.0%}  {count(rate):>6} steps/s  {show(point)}"
        self._console.print(line + ("  best" if point == best else ""), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None: ...


class LiveView:
    """The fastest settings so far, what is being measured, and the time used."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4)
        self._live.start()

    def measuring(self, tuning: Tuning, point: Point) -> None:
        self._live.update(_panel(tuning, point))

    def measured(self, tuning: Tuning, point: Point, rate: float) -> None:
        self._live.update(_panel(tuning, None))

    def close(self) -> None:
        self._live.stop()


def show(point: Point) -> str:
    """Writes a point as one line."""
    passes = "all waiting" if point.merge else "one request"
    return (
        f"env {point.servers} x {point.groups} groups of {point.envs}, inference {point.inference}, "
        f"{passes} a pass, unroll {point.unroll}"
    )


def _panel(tuning: Tuning, point: Point | None) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in ("steps/s", "env-servers", "groups", "envs", "inference-servers", "pass", "unroll", "measured"):
        table.add_column(head, justify="right")
    ranked = sorted(tuning.search.rates, key=lambda p: -tuning.search.rate(p))[:SHOWN]
    for p in ranked:
        cells = (
            count(tuning.search.rate(p)),
            p.servers,
            p.groups,
            p.envs,
            p.inference,
            "all" if p.merge else "one",
            p.unroll,
        )
        style = "bold green" if p == tuning.search.best else None
        table.add_row(*(str(cell) for cell in cells), f"{len(tuning.search.rates[p])} x", style=style)
    total = tuning.minutes * 60
    bar = Table.grid(padding=(0, 2))
    stage = "measuring the best again" if tuning.search.finals else "searching"
    bar.add_row(
        ProgressBar(total=1.0, completed=min(1.0, tuning.spent), width=30),
        Text(f"{clock(tuning.spent * total)} of at most {clock(total)}, {stage}", style="dim"),
    )
    now = Text(f"now: {show(point)}" if point else "", style="cyan")
    return Group(bar, Text(), table, now)
