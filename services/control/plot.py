"""Draws learning curves from `progress.csv`: return over steps and over seconds, of one run or of several.

Runs whose names differ in a last number alone (`a2c-1`, `a2c-2`) are seeds of one job and share a colour.
"""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from common.config import Config, load
from common.errors import ConfigError
from services.control.targets import check_target

matplotlib.use("Agg")

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

COLOURS = ("#0f7b8a", "#d1495b", "#edae49", "#30638e", "#7a5195", "#4c9f70", "#8d6a4f", "#5b5b5b")
INK, FAINT = "#22303a", "#d9e0e4"
SIZE, DPI = (10.0, 4.4), 130
POINTS = 400


class NoEpisode(ConfigError):
    """A run of which there is nothing to draw yet."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean training return of one run against the steps collected and the seconds trained.

    `job` is its name without the seed's number.
    """

    name: str
    job: str
    steps: list[float]
    seconds: list[float]
    returns: list[float]
    goal: float | None


def plot_runs(runs: list[Path], out: Path | None = None) -> Path:
    """Writes the PNG of one run (RUN/curve.png) or of several together (comparison.png), and gives its path.

    A run that has ended no episode yet is left out aloud, where others have.
    """
    curves = _curves(runs)
    path = out or (runs[0] / "curve.png" if len(runs) == 1 else Path("comparison.png"))
    check_target("--out", path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out {path}: a plot is a PNG", f"name it {path.with_suffix('.png')}")
    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    figure.suptitle(
        curves[0].name if len(curves) == 1 else "learning curves", x=0.01, ha="left", weight="bold", color=INK
    )
    by_steps, by_seconds = figure.subplots(1, 2, sharey=True)
    jobs: dict[str, list[Curve]] = {}
    for curve in curves:
        jobs.setdefault(curve.job, []).append(curve)
    for seeds, colour in zip(jobs.values(), COLOURS * len(jobs), strict=False):
        _draw(by_steps, by_seconds, seeds, colour)
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


def _draw(by_steps: Any, by_seconds: Any, seeds: list[Curve], colour: str) -> None:
    """Draws one job: each seed by seconds; by steps their mean, and a band from the worst to the best."""
    label = seeds[0].name if len(seeds) == 1 else f"{seeds[0].job}, {len(seeds)} seeds"
    for number, curve in enumerate(seeds):
        by_seconds.plot(curve.seconds, curve.returns, color=colour, linewidth=1.4, label="" if number else label)
    first, last = max(curve.steps[0] for curve in seeds), max(curve.steps[-1] for curve in seeds)
    steps = np.linspace(first, last, POINTS)
    # A run that has ended, solved, stays where it was.
    returns = np.stack([np.interp(steps, curve.steps, curve.returns) for curve in seeds])
    by_steps.fill_between(steps, returns.min(0), returns.max(0), color=colour, alpha=0.15, linewidth=0)
    by_steps.plot(steps, returns.mean(0), color=colour, linewidth=1.8)


def _curves(runs: list[Path]) -> list[Curve]:
    curves: list[Curve] = []
    empty: list[NoEpisode] = []
    for run in runs:
        try:
            curves.append(read_curve(run))
        except NoEpisode as error:
            empty.append(error)
    if not curves:
        raise empty[0]
    for none in empty:
        print(f"left out: {none.message}", file=sys.stderr)
    return curves


def read_curve(run: Path) -> Curve:
    """Reads a run's progress.csv; raises ConfigError where there is none, NoEpisode where no episode has ended yet."""
    path = run / "progress.csv"
    if not path.exists():
        if (run / "config.yaml").exists():
            raise NoEpisode(f"{run} has no finished episode yet", "train on, then plot")
        raise ConfigError(f"{run} has no progress.csv", "name a run's directory, such as one under runs/")
    with path.open(newline="") as lines:
        table = csv.DictReader(lines)
        try:
            # A row without an episode yet has no return, and a job that was killed may leave half a row.
            rows = [
                (float(row["steps"]), float(row["seconds"]), float(row["episode_return"]))
                for row in table
                if row.get("episode_return") not in (None, "", "nan")
            ]
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{path}, line {table.line_num}: {error}", "mend the line or take it out") from None
    if not rows:
        raise NoEpisode(f"{run} has no finished episode yet", "train on, then plot")
    steps, seconds, returns = (list(column) for column in zip(*rows, strict=True))
    config = load(run / "config.yaml", (), {}) if (run / "config.yaml").exists() else None
    goal = config.stop.episode_return if config else None
    return Curve(_label(run, config), re.sub(r"-\d+$", "", run.resolve().name), steps, seconds, returns, goal)


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
