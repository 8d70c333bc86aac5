"""How long until CartPole-v1 is solved: `headrace train` beside Stable-Baselines3's PPO, seed by seed in turn.

The clock runs from the start of the command, start-up included, to the first 100-episode training mean of 475.

    python -m benchmarks.solve [--seeds 5] [--sb3 PYTHON_WITH_STABLE_BASELINES3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers.__main__ import install
from services.control.bench.peers import HOME, PEERS, python_of, ready

HERE = Path(__file__).resolve().parent


def headrace(seed: int) -> tuple[float, int, float]:
    """Seconds and steps to the goal, and the mean return of 100 greedy evaluation episodes after it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "services.control.cli"]
        train = ["train", "configs/cartpole_ppo.yaml", f"run.seed={seed}", f"run.dir={folder}", "run.name=run"]
        began = time.time()
        subprocess.run([*command, *train], check=True, stdout=subprocess.DEVNULL)
        result = json.loads((Path(folder) / "run" / "result.json").read_text())
        seconds = result["finished_at"] - began if result["outcome"] == "solved" else float("inf")
        subprocess.run([*command, "evaluate", f"{folder}/run"], check=True, stdout=subprocess.DEVNULL)
        evaluation = json.loads((Path(folder) / "run" / "evaluation.json").read_text())
        return seconds, result["steps"], evaluation["mean"]


def stable_baselines3(python: Path, seed: int, threads: int) -> tuple[float, int]:
    """Seconds and steps to the goal."""
    began = time.time()
    run = subprocess.run(
        [python, HERE / "peers" / "sb3_cartpole.py", str(seed)],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    said = json.loads(run.stdout.splitlines()[-1])
    return said["at"] - began, said["steps"]


def peer_python() -> Path:
    """Makes the peer's virtual environment if it is not there; gives its interpreter."""
    peer = next(peer for peer in PEERS if peer.name == "sb3")
    if not ready(peer, HOME):
        install(peer, HOME)
    return python_of(peer, HOME)


def report(seeds: int, python: Path) -> str:
    """Runs every seed with each in turn; gives a Markdown table."""
    columns: dict[str, list[tuple[float, int]]] = {"Headrace": [], "SB3, 1 thread": [], "SB3, 2 threads": []}
    evaluations = []
    for seed in range(1, seeds + 1):
        seconds, steps, evaluation = headrace(seed)
        columns["Headrace"].append((seconds, steps))
        evaluations.append(evaluation)
        columns["SB3, 1 thread"].append(stable_baselines3(python, seed, 1))
        columns["SB3, 2 threads"].append(stable_baselines3(python, seed, 2))
    ours = statistics.median(seconds for seconds, _ in columns["Headrace"])
    lines = ["| | median | worst | each seed | steps, median | Headrace is faster by |", "|---|---|---|---|---|---|"]
    for name, runs in columns.items():
        times = [seconds for seconds, _ in runs]
        middle = statistics.median(times)
        each = ", ".join(f"{t:.1f}" for t in times)
        taken = statistics.median(steps for _, steps in runs)
        faster = "" if name == "Headrace" else f"{middle / ours:.1f} x"
        lines.append(f"| {name} | {middle:.1f} s | {max(times):.1f} s | {each} | {taken:,.0f} | {faster} |")
    means = ", ".join(f"{mean:.1f}" for mean in evaluations)
    return "\n".join(lines) + f"\n\nMean return of 100 fresh greedy episodes of Headrace's policy, each seed: {means}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sb3", type=Path, help="a Python that has Stable-Baselines3; one is made if none is given")
    arguments = parser.parse_args()
    print(report(arguments.seeds, arguments.sb3 or peer_python()))


if __name__ == "__main__":
    main()
