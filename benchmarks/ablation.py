"""What each part of the data path brings: CartPole is collected with all of it, and with one part taken out at a time.

python -m benchmarks.ablation [--seconds 3] [--repeat 5]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path

from benchmarks.page import spread
from common.config import Config
from services.control.bench import pipeline
from services.control.bench.jobs import collect_job

WITHOUT = str(Path(__file__).with_name("without.py"))
# What is said of a part: the settings that take it out, or its name in without.py.
PARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "all of it": ((), ""),
    "double buffering: one group that waits for its actions": (("env.groups=1",), ""),
    "large batches: groups of 256": (("env.envs=256",), ""),
    "native CartPole: Gymnasium's own vector environment": (("env.id=gymnasium.envs.classic_control:CartPole-v1",), ""),
    "acting in numpy: eager torch": ((), "numpy_acting"),
    "memory that is kept: glibc's defaults": ((), "kept_memory"),
    "a free choice of cores: env.affinity=auto": (("env.affinity=auto",), ""),
}


async def _once(config: Config, part: str, seconds: float) -> float:
    pipeline.LAUNCH[:] = [sys.executable, WITHOUT, part] if part else [sys.executable]
    async with pipeline.open_pipeline() as opened:
        return (await opened.run(config, seconds)).steps_s


def report(seconds: float, repeat: int) -> str:
    """Measures all in turn, `repeat` times; gives a Markdown table of ratios within each turn."""
    rates: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(repeat):
        for name, (settings, part) in PARTS.items():
            rates[name].append(asyncio.run(_once(collect_job("CartPole-v1", settings)[1], part, seconds)))
    whole = rates["all of it"]
    lines = ["| CartPole-v1 without | steps/s, median | of the whole, median (min to max) |", "|---|---|---|"]
    for name, values in rates.items():
        shares = [value / all_of_it for value, all_of_it in zip(values, whole, strict=True)]
        lines.append(f"| {name} | {statistics.median(values):,.0f} | {spread(shares)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    print(report(arguments.seconds, arguments.repeat))


if __name__ == "__main__":
    main()
