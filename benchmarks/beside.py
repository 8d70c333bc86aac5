"""SAC and TD3 on HalfCheetah beside Stable-Baselines3's, at the same steps: two curves each, with the same settings.

A million steps take hours; so many are made as are asked for, and both stop there. What is kept in docs/results is not
made again; each side may be made alone, and the two at the same time, so seconds are not compared.

    python -m benchmarks.beside [--algorithms sac td3] [--sides headrace sb3] [--steps 100000]
"""

from __future__ import annotations

import argparse
import csv
import subprocess
from pathlib import Path

from benchmarks.page import write_sections
from benchmarks.results import KEPT, PAGE, headrace, keep
from benchmarks.solve import peer_python

SCRIPT = Path(__file__).resolve().parent / "peers" / "sb3_curve.py"
RUNS, SEED = Path("runs/beside"), 1


def ours(algorithm: str, steps: int) -> None:
    run = RUNS / f"headrace_{algorithm}-{SEED}"
    settings = (f"stop.steps={steps}", f"run.seed={SEED}", f"run.dir={RUNS}", f"run.name={run.name}")
    headrace("train", f"configs/halfcheetah_{algorithm}.yaml", *settings)
    headrace("evaluate", str(run), "--episodes", "20")
    (run / "figures.json").write_text((run / "evaluation.json").read_text())
    keep(run)


def theirs(algorithm: str, steps: int) -> None:
    folder = KEPT / f"sb3_{algorithm}-{SEED}"
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "progress.csv"
    subprocess.run([peer_python(), SCRIPT, algorithm, str(SEED), str(steps), progress], check=True)


def section(algorithms: list[str]) -> str:
    """Gives the table and the pictures of what is kept."""
    lines = ["| algorithm | steps | Headrace, last 100 episodes | Stable-Baselines3's |", "|---|---|---|---|"]
    pictures = []
    for algorithm in algorithms:
        folders = [KEPT / f"{side}_{algorithm}-{SEED}" for side in ("headrace", "sb3")]
        if not all((folder / "progress.csv").exists() for folder in folders):
            continue
        (steps, our_return), (_, their_return) = (_last(folder) for folder in folders)
        lines.append(f"| {algorithm.upper()} | {steps:,.0f} | {our_return:,.0f} | {their_return:,.0f} |")
        out = f"results-beside-{algorithm}.png"
        headrace("plot", *map(str, folders), "--out", f"docs/{out}")
        said = f"{algorithm.upper()} on HalfCheetah-v5, Headrace and Stable-Baselines3"
        pictures.append(f"![{said}]({out})")
    return "\n\n".join(["\n".join(lines), *pictures])


def _last(folder: Path) -> tuple[float, float]:
    with (folder / "progress.csv").open(newline="") as lines:
        last = list(csv.DictReader(lines))[-1]
    return float(last["steps"]), float(last["episode_return"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=["sac", "td3"], default=["sac", "td3"])
    parser.add_argument("--sides", nargs="+", choices=["headrace", "sb3"], default=["headrace", "sb3"])
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    for algorithm in arguments.algorithms:
        for side, measure in (("headrace", ours), ("sb3", theirs)):
            if side in arguments.sides and not (KEPT / f"{side}_{algorithm}-{SEED}" / "progress.csv").exists():
                measure(algorithm, arguments.steps)
    write_sections(PAGE, {"beside": section(["sac", "td3"])})


if __name__ == "__main__":
    main()
