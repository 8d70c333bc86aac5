"""What A2C and PPO reach: trains, evaluates and plots each job over several seeds, and writes docs/results.md's table.

A run that has been evaluated is not made again, so an interrupted script goes on where it was.

    python -m benchmarks.results [--seeds 3] [--only NAME ...] [--runs runs/results]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path("docs/results.md")
BEGIN, END = "<!-- table: written by benchmarks/results.py -->", "<!-- end of table -->"
HEADER = (
    "| environment | algorithm | command | steps | frames | wall time (s) | evaluation, each seed | reference "
    "| reached |\n|---|---|---|---|---|---|---|---|---|"
)
ZOO = "RL Baselines3 Zoo"


@dataclass(frozen=True, slots=True)
class Job:
    """A config, the mean it must reach, and whose figure stands beside it. `plot` is the picture that shows it."""

    name: str
    environment: str
    algorithm: str
    goal: float
    reference: str
    plot: str

    def command(self, seed: int | str) -> str:
        return f"headrace train configs/{self.name}.yaml run.seed={seed}"


JOBS = (
    Job("cartpole_ppo", "CartPole-v1", "PPO", 475, f"500 at 100k, {ZOO}", "cartpole"),
    Job("cartpole_a2c", "CartPole-v1", "A2C", 475, f"500 at 500k, {ZOO}", "cartpole"),
    Job("cartpole_ppo_lstm", "CartPole-v1", "PPO, LSTM", 475, "500, the limit", "cartpole-kinds"),
    Job("cartpole_ppo_async", "CartPole-v1", "PPO, asynchronous", 475, "500, the limit", "cartpole-kinds"),
    Job("pendulum_ppo", "Pendulum-v1", "PPO", -200, f"-172 at 100k, {ZOO}", "pendulum"),
    Job("pendulum_a2c", "Pendulum-v1", "A2C", -400, f"-163 at 1M, {ZOO}", "pendulum"),
    Job("minatar_breakout_ppo", "MinAtar/Breakout-v1", "PPO", 5, "random: 0.4", "minatar"),
    Job("minatar_breakout_a2c", "MinAtar/Breakout-v1", "A2C", 5, "random: 0.4", "minatar"),
)


def headrace(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "services.control.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def measure(job: Job, seed: int, runs: Path) -> dict[str, Any]:
    """Trains and evaluates one seed, unless that was done before; gives what its figures.json holds."""
    run = runs / f"{job.name}-{seed}"
    figures = run / "figures.json"
    if not figures.exists():
        began = time.monotonic()
        command = job.command(seed).split()[1:]
        headrace(*command, f"run.dir={runs}", f"run.name={run.name}")
        wall = time.monotonic() - began
        headrace("evaluate", str(run), "--episodes", "100")
        result = json.loads((run / "result.json").read_text())
        evaluation = json.loads((run / "evaluation.json").read_text())
        kept = {"steps": result["steps"], "frames": result["frames"], "wall_s": wall}
        figures.write_text(json.dumps(kept | {"mean": evaluation["mean"], "std": evaluation["std"]}))
    return dict(json.loads(figures.read_text()))


def row(job: Job, measured: list[dict[str, Any]]) -> str:
    """One line of the table; a seed below the goal makes it short."""

    def each(key: str) -> str:
        return ", ".join(f"{m[key]:,.0f}" for m in measured)

    evaluations = ", ".join(f"{m['mean']:.1f} ± {m['std']:.1f}" for m in measured)
    short = sum(m["mean"] < job.goal for m in measured)
    reached = f"short: {short} of {len(measured)} below {job.goal:g}" if short else f"yes: all ≥ {job.goal:g}"
    cells = (job.environment, job.algorithm, f"`{job.command('N')}`", each("steps"), each("frames"), each("wall_s"))
    return "| " + " | ".join((*cells, evaluations, job.reference, reached)) + " |"


def write_table(lines: list[str]) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join((HEADER, *lines)) + f"\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[job.name for job in JOBS], help="these jobs; the page stays")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    lines = []
    for job in JOBS:
        if arguments.only is None or job.name in arguments.only:
            lines.append(row(job, [measure(job, seed, arguments.runs) for seed in seeds]))
            print(lines[-1], flush=True)
    if arguments.only is not None:
        return
    write_table(lines)
    for plot in dict.fromkeys(job.plot for job in JOBS):
        curves = [str(arguments.runs / f"{job.name}-{seed}") for job in JOBS if job.plot == plot for seed in seeds]
        headrace("plot", *curves, "--out", f"docs/results-{plot}.png")


if __name__ == "__main__":
    main()
