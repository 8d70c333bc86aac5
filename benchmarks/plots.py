"""Draws the benchmark page's plots from the tables that stand in it, as PNGs under docs/plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

OURS, THEIRS, LIMIT = "#0f7b8a", "#9db4bd", "#d1495b"
INK = "#22303a"


@dataclass(frozen=True, slots=True)
class Bar:
    """A subject, its median rate, and the least and the greatest."""

    name: str
    median: float
    least: float
    greatest: float

    @property
    def colour(self) -> str:
        if self.name.startswith("limit"):
            return LIMIT
        return OURS if self.name.startswith("ours") else THEIRS


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    bars: tuple[Bar, ...]


def read_table(text: str) -> Panel:
    """Gives what the first table of a section says: title and unit from its heads, then a subject a row."""
    lines = text.strip().partition("\n\n")[0].splitlines()
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    unit = heads[1].removesuffix(", median")
    bars = []
    for name, median, spread, *_ in rows:
        least, greatest = (_number(end) for end in spread.split(" to "))
        bars.append(Bar(name, _number(median), least, greatest))
    return Panel(f"{heads[0]}, {unit}", tuple(bars))


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def draw_rates(panels: Sequence[Panel], path: Path) -> None:
    """Writes a panel below the other: each subject's median rate as a bar on a log scale, its spread as a line."""
    figure = Figure(figsize=(10.0, 0.8 + 2.6 * len(panels)), layout="constrained", facecolor="white")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        bars = panel.bars[::-1]
        medians = [bar.median for bar in bars]
        spread = [[bar.median - bar.least for bar in bars], [bar.greatest - bar.median for bar in bars]]
        axes.barh([bar.name for bar in bars], medians, xerr=spread, color=[bar.colour for bar in bars])
        for place, bar in enumerate(bars):
            axes.annotate(f"  {bar.median:,.0f}", (bar.greatest, place), va="center", fontsize=7, color=INK)
        axes.set_xscale("log")
        # From a power of ten on: bars on a log scale have no zero to grow from.
        axes.set_xlim(10 ** math.floor(math.log10(min(medians))), 4 * max(medians))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
