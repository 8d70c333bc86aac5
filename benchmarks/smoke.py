"""`make bench-smoke`: the pipeline's ratios to what stands beside it, against the committed ones; two minutes or three.

Ratios, never absolute times: what slows the machine down slows both sides. A ratio fails below half of the committed
one: shared machines move by tens of per cent, and a change that halves the throughput moves by more.

    python -m benchmarks.smoke [--commit]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import wire
from benchmarks.page import spread
from services.control.bench.collect import pipeline_rate
from services.control.bench.jobs import collect_job
from services.control.bench.subjects import async_vector_env, rate, step_and_infer

COMMITTED = Path(__file__).with_name("smoke.json")
GROSS = 0.5
REPEAT = 3
SECONDS = 1.0


def cartpole() -> dict[str, float]:
    """CartPole through the pipeline over the limit without messages, and over Gymnasium's AsyncVectorEnv."""
    _, tuned, bound = collect_job("CartPole-v1")
    ours = pipeline_rate(tuned, SECONDS).steps_s
    limit, vector = rate(step_and_infer, bound, SECONDS, os.cpu_count() or 1), rate(async_vector_env, bound, SECONDS)
    return {"CartPole / limit": ours / limit, "CartPole / AsyncVectorEnv": ours / vector}


def halfcheetah() -> dict[str, float]:
    """HalfCheetah through the pipeline over the limit without messages."""
    _, tuned, bound = collect_job("HalfCheetah-v5")
    limit = rate(step_and_infer, bound, SECONDS, os.cpu_count() or 1)
    return {"HalfCheetah / limit": pipeline_rate(tuned, SECONDS).steps_s / limit}


def message_plane() -> dict[str, float]:
    """Round trips of 1 KiB and payloads of 256 KiB, through our Client and Server and through bare zmq.asyncio."""
    (bare, _), (ours, _) = wire.run(False, 1 << 10), wire.run(True, 1 << 10)
    (_, bare_bytes), (_, our_bytes) = wire.run(False, 256 << 10), wire.run(True, 256 << 10)
    return {"1 KiB round trip, bare / ours": bare / ours, "256 KiB a second, ours / bare": our_bytes / bare_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", action="store_true", help="write what was measured as the ratios to hold")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(REPEAT):
        for measure in (cartpole, halfcheetah, message_plane):
            for name, ratio in measure().items():
                found.setdefault(name, []).append(ratio)
    medians = {name: statistics.median(values) for name, values in found.items()}
    if arguments.commit:
        COMMITTED.write_text(json.dumps(medians, indent=1) + "\n")
    held = json.loads(COMMITTED.read_text())
    table, failed = Table(box=SIMPLE, pad_edge=False), []
    for head in ("ratio", "now, median (min to max)", "committed", "of it"):
        table.add_column(head, no_wrap=True, justify="left" if head == "ratio" else "right")
    for name, now in medians.items():
        share = now / held[name]
        if share < GROSS:
            failed.append(name)
        cells = (name, spread(found[name]), f"{held[name]:.2f}", f"{share:.0%}")
        table.add_row(*cells, style="red" if share < GROSS else None)
    Console().print(table)
    if failed:
        sys.exit(f"below {GROSS:.0%} of the committed ratio: {', '.join(failed)}")


if __name__ == "__main__":
    main()
