"""What V-trace and LASER's trust region are worth: the same jobs with and without them, over several seeds.

Trains, evaluates and draws each variant, and writes the tables of docs/results.md. A run that has been evaluated is not
made again, so an interrupted script goes on where it was.

    python -m benchmarks.vtrace [--seeds 3] [--only lag trust-region] [--runs runs/vtrace] [--write]
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.page import write_sections
from benchmarks.results import PAGE, measure
from services.control.plot import COLOURS, DPI, FAINT, INK, read_curve

SOLVED = 475.0
HEADER = (
    "| variant | policy lag | steps until 475 in training | training, last fifth | evaluation, each seed |\n"
    "|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of an experiment; `name` is that of its runs, `label` what picture and table call it."""

    name: str
    label: str
    config: str
    overrides: tuple[str, ...]

    def command(self, seed: int | str) -> str:
        return " ".join(("headrace", "train", f"configs/{self.config}.yaml", *self.overrides, f"run.seed={seed}"))


# Rows enough for a curve.
COMMON = ("learner.log_s=0.25",)
# Where 50 versions are a lag that can be learned from at all; docs/results.md says how it was found.
LAG = (
    *COMMON,
    "replay.max_policy_lag=80",
    "env.envs=4",
    "learner.batch=1",
    "learner.lr=5e-4",
    "network.popart=true",
    "stop.steps=300000",
)
EXPERIMENTS = {
    "lag": (
        Variant("lag0", "V-trace, acting up to date", "cartpole_impala", LAG),
        Variant("lag50", "V-trace, 50 versions behind", "cartpole_impala", (*LAG, "inference.hold_back=50")),
        Variant(
            "lag50-plain",
            "no V-trace, 50 versions behind",
            "cartpole_impala",
            (*LAG, "inference.hold_back=50", "algorithm.vtrace=false"),
        ),
    ),
    "trust-region": (
        Variant("laser", "trust region, b = 0.1", "cartpole_laser", COMMON),
        Variant("laser-free", "no trust region", "cartpole_laser", (*COMMON, "algorithm.trust_region=null")),
    ),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A variant's runs: what results.measure gives, their curves over `steps`, and their lags."""

    variant: Variant
    figures: list[dict[str, Any]]
    steps: np.ndarray
    returns: np.ndarray
    lags: list[float]

    @property
    def evaluation(self) -> float:
        """Mean return of all seeds' evaluations."""
        return statistics.fmean(m["mean"] for m in self.figures)

    def row(self) -> str:
        """Gives the variant's line of the table."""
        late = self.returns[:, self.steps >= 0.8 * self.steps[-1]].mean(1)
        first = [int(self.steps[np.argmax(r >= SOLVED)]) if (r >= SOLVED).any() else None for r in self.returns]
        cells = (
            self.variant.label,
            f"{statistics.fmean(self.lags):.0f}",
            ", ".join("never" if steps is None else f"{steps / 1000:.0f}k" for steps in first),
            ", ".join(f"{x:.0f}" for x in late),
            ", ".join(f"{m['mean']:.1f} ± {m['std']:.1f}" for m in self.figures),
        )
        return f"| {' | '.join(cells)} |"


def run_all(variant: Variant, seeds: range, runs: Path) -> Measured:
    """Trains and evaluates a variant with each seed, where that was not done before, and reads what they left."""
    figures = [measure(variant, seed, runs) for seed in seeds]
    folders = [runs / f"{variant.name}-{seed}" for seed in seeds]
    curves = [read_curve(folder) for folder in folders]
    steps = np.linspace(0.0, min(curve.steps[-1] for curve in curves), 400)
    # Nothing is known before the first episode's end.
    returns = np.stack([np.interp(steps, curve.steps, curve.returns, left=np.nan) for curve in curves])
    return Measured(variant, figures, steps, returns, [mean_lag(folder) for folder in folders])


def mean_lag(run: Path) -> float:
    """Gives the mean policy lag, in versions, of the batches that progress.csv has, less the first tenth."""
    with (run / "progress.csv").open(newline="") as lines:
        lags = [float(row["policy_lag"]) for row in csv.DictReader(lines)]
    return statistics.fmean(lags[len(lags) // 10 :])


def draw(measured: list[Measured], path: Path) -> None:
    """Writes the PNG: each variant's mean training return over its seeds, and a band from the worst to the best."""
    figure = Figure(figsize=(8.0, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for one, colour in zip(measured, COLOURS, strict=False):
        axes.fill_between(one.steps, one.returns.min(0), one.returns.max(0), color=colour, alpha=0.18, linewidth=0)
        axes.plot(one.steps, one.returns.mean(0), color=colour, linewidth=2.0, label=one.variant.label)
    axes.set_xlabel("environment steps", color=INK)
    axes.set_ylabel("mean return of the last 100 episodes", color=INK)
    axes.set_title(
        f"CartPole-v1, mean and range of {len(measured[0].figures)} seeds", loc="left", fontsize=10, color=INK
    )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.set_ylim(0, 510)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    # Beside the curves: they may end anywhere.
    figure.legend(frameon=False, loc="outside lower center", ncols=len(measured), fontsize=9, labelcolor=INK)
    figure.savefig(path, dpi=DPI)


def section(name: str, measured: list[Measured]) -> str:
    """Gives what the page says of an experiment: commands, table, what follows from it, and the picture."""
    *_, whole, without = measured
    verdict = "does worse" if without.evaluation < whole.evaluation else "does not do worse"
    seeds = len(whole.figures)
    commands = [one.variant.command("N") for one in measured]
    return "\n".join(
        (
            "\n```bash",
            *commands,
            "```\n",
            HEADER,
            *(one.row() for one in measured),
            "",
            f"*{without.variant.label}* {verdict} than *{whole.variant.label}*: {without.evaluation:.0f} against",
            f"{whole.evaluation:.0f} in evaluation, the means of {seeds} seeds.\n",
            f"![The training return of {len(measured)} variants, {seeds} seeds each](results-{name}.png)\n",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=[*EXPERIMENTS], help="not all experiments")
    parser.add_argument("--runs", type=Path, default=Path("runs/vtrace"))
    parser.add_argument("--write", action="store_true", help="into docs/results.md, with the pictures beside it")
    arguments = parser.parse_args()
    for name in arguments.only:
        measured = []
        for variant in EXPERIMENTS[name]:
            measured.append(run_all(variant, range(1, arguments.seeds + 1), arguments.runs))
            print(measured[-1].row(), flush=True)
        draw(measured, (PAGE.parent if arguments.write else arguments.runs) / f"results-{name}.png")
        if arguments.write:
            write_sections(PAGE, {f"{name}: written by benchmarks/vtrace.py": section(name, measured)})


if __name__ == "__main__":
    main()
