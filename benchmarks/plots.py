"""Draws the benchmark page's plots from the JSON of its runs, as PNGs under docs/plots."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

OURS, THEIRS, LIMIT = "#0f7b8a", "#9db4bd", "#d1495b"
INK = "#22303a"


def draw_rates(reports: list[dict[str, Any]], path: Path) -> None:
    """Writes one panel per report: the median rate of each subject as a bar on a log scale, its spread as a line."""
    figure = Figure(figsize=(10.0, 0.8 + 2.6 * len(reports)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(reports), 1, squeeze=False)[:, 0]
    for axes, report in zip(panels, reports, strict=True):
        rows = report["rows"][::-1]
        medians = [row["median"] for row in rows]
        spread = [
            [row["median"] - min(row["rates"]) for row in rows],
            [max(row["rates"]) - row["median"] for row in rows],
        ]
        axes.barh([row["name"] for row in rows], medians, xerr=spread, color=[_colour(row, report) for row in rows])
        for place, row in enumerate(rows):
            axes.annotate(f"  {row['median']:,.0f}", (max(row["rates"]), place), va="center", fontsize=7, color=INK)
        axes.set_xscale("log")
        # From a power of ten on: bars on a log scale have no zero to grow from.
        axes.set_xlim(10 ** math.floor(math.log10(min(medians))), 4 * max(medians))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{report['title']}, {report['unit']}", loc="left", fontsize=10, fontweight="bold", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _colour(row: dict[str, Any], report: dict[str, Any]) -> str:
    if row["name"].startswith("limit"):
        return LIMIT
    return OURS if row["name"].startswith("ours") else THEIRS


def draw_files(files: list[Path], path: Path) -> bool:
    """Draws these reports, one below the other, if all are there: a page has one plot. Says whether it did."""
    if not all(file.exists() for file in files):
        return False
    draw_rates([json.loads(file.read_text()) for file in files], path)
    return True
