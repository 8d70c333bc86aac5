"""Whether memory stays flat: trains CartPole for 100 million steps and watches every process of the job.

    python -m benchmarks.memory [--steps 100000000]

A process counts as flat when its resident memory over the last tenth of the job is within 2 % of that over the second:
the first tenth fills buffers.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import psutil

from common.errors import HeadraceError
from services.control.entry import answered

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/bench/cartpole-v1_ppo.yaml"
EVERY_S = 0.5
MB = 1e6
FLAT = 0.02


def watch(steps: int) -> tuple[dict[str, list[tuple[int, float]]], int, float]:
    """Trains to `steps`; gives (steps so far, resident MB) of each process, and the steps and seconds of the job."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as folder:
        progress = Path(folder) / "run" / "progress.csv"
        command = [sys.executable, "-m", "services.control.cli", "train", CONFIG, "stop.episode_return=null"]
        command += [f"stop.steps={steps}", f"run.dir={folder}", "run.name=run"]
        began = time.monotonic()
        job = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        while job.poll() is None:
            done = _steps(progress)
            for name, used in _resident(job.pid).items():
                found[name].append((done, used / MB))
            try:
                job.wait(EVERY_S)
            except subprocess.TimeoutExpired:
                continue
        if job.returncode:
            raise HeadraceError(f"the job ended with exit code {job.returncode}", "try it with `headrace train`")
        return found, _steps(progress), time.monotonic() - began


def _steps(progress: Path) -> int:
    if not progress.exists():
        return 0
    with progress.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return int(float(rows[-1]["steps"])) if rows else 0


def _resident(pid: int) -> dict[str, int]:
    used = {}
    try:
        job = psutil.Process(pid)
        for process in (job, *job.children(recursive=True)):
            if name := name_of(process.cmdline()):
                used[name] = process.memory_info().rss
    except psutil.NoSuchProcess:  # the job is just ending
        pass
    return used


def name_of(words: Sequence[str]) -> str:
    """Gives what the process of a command line is called in the table, nothing if it is none of the job's own."""
    if any(word.endswith("/guardian.py") for word in words):
        return "guardian"
    module = next((word.removeprefix("services.") for word in words if word.startswith("services.")), "")
    if module == "control.cli":
        return "headrace train"
    return f"{module} {words[words.index('--index') + 1]}" if module and "--index" in words else module


def _over(samples: list[tuple[int, float]], start: float, end: float) -> float:
    """Gives the largest of the samples taken between two numbers of steps."""
    return max(used for done, used in samples if start <= done <= end)


def report(steps: int) -> str:
    found, done, seconds = watch(steps)
    lines = [
        f"| CartPole-v1, {done / 1e6:.0f} M steps trained in {seconds:.0f} s | MB, second tenth | MB, last tenth | "
        "growth | flat |",
        "|---|---|---|---|---|",
    ]
    for name, samples in sorted(found.items()):
        try:
            before, after = _over(samples, 0.1 * done, 0.2 * done), _over(samples, 0.9 * done, done)
        except ValueError:
            remedy = f"train for longer: memory is read every {EVERY_S:g} s"
            raise HeadraceError(f"--steps {steps}: {name} was not seen in both tenths of the job", remedy) from None
        flat = "yes" if after <= before * (1 + FLAT) else "**no**"
        lines.append(f"| {name} | {before:,.1f} | {after:,.1f} | {after / before - 1:+.1%} | {flat} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000_000)
    arguments = parser.parse_args()
    answered(lambda: print(report(arguments.steps)))


if __name__ == "__main__":
    main()
