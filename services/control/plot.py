"""Draws learning curves from `progress.csv`: return over steps and over seconds, of one run or of several."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from common.config import Config, load
from common.errors import ConfigError

matplotlib.use("Agg")

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

COLOURS = ("#0f7b8a", "#d1495b", "#edae49", "#30638e", "#7a5195", "#4c9f70", "#8d6a4f", "#5b5b5b")
INK, FAINT = "#22303a", "#d9e0e4"
SIZE, DPI = (10.0, 4.4), 130


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean training return of one run against the steps collected and the seconds trained."""

    name: str
    steps: list[float]
    seconds: list[float]
    returns: list[float]
    goal: float | None


def plot_runs(runs: list[Path], out: Path | None = None) -> Path:
    """Writes the PNG of one run (RUN/curve.png) or of several together (comparison.png), and gives its path."""
    curves = [read_curve(run) for run in runs]
    path = out or (runs[0] / "curve.png" if len(runs) == 1 else Path("comparison.png"))
    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    figure.suptitle(
        curves[0].name if len(curves) == 1 else "learning curves", x=0.01, ha="left", weight="bold", color=INK
    )
    by_steps, by_seconds = figure.subplots(1, 2, sharey=True)
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        by_steps.plot(curve.steps, curve.returns, color=colour, linewidth=1.8, label=curve.name)
        by_seconds.plot(curve.seconds, curve.returns, color=colour, linewidth=1.8, label=curve.name)
    by_steps.set_xlabel("environment steps")
    by_steps.set_ylabel("mean return of the last episodes")
    by_steps.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_seconds.set_xlabel("seconds of training")
    for axes in (by_steps, by_seconds):
        _dress(axes, {curve.goal for curve in curves if curve.goal is not None})
    if len(curves) > 1:
        by_seconds.legend(frameon=False, loc="lower right", fontsize=8, labelcolor=INK)
    figure.savefig(path, dpi=DPI)
    return path


def read_curve(run: Path) -> Curve:
    """Reads a run's progress.csv; raises ConfigError where there is none, or no episode has ended yet."""
    path = run / "progress.csv"
    if not path.exists():
        raise ConfigError(f"{run} has no progress.csv", "name a run's directory, such as one under runs/")
    with path.open(newline="") as lines:
        # A row without an episode yet has no return, and a job that was killed may leave half a row.
        rows = [
            (float(row["steps"]), float(row["seconds"]), float(row["episode_return"]))
            for row in csv.DictReader(lines)
            if row.get("episode_return") not in (None, "", "nan")
        ]
    if not rows:
        raise ConfigError(f"{path} has no finished episode yet", "train on, then plot")
    steps, seconds, returns = (list(column) for column in zip(*rows, strict=True))
    config = load(run / "config.yaml", (), {}) if (run / "config.yaml").exists() else None
    return Curve(_label(run, config), steps, seconds, returns, config.stop.episode_return if config else None)


def _label(run: Path, config: Config | None) -> str:
    name = run.resolve().name
    return f"{config.algorithm.get('name')} on {config.env.id} ({name})" if config else name


def _dress(axes: Any, goals: set[float]) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.set_xlim(left=0)
    for goal in goals:
        axes.axhline(goal, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        axes.annotate(
            f"goal {goal:g}",
            (0, goal),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
