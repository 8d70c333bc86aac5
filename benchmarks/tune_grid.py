"""Whether `headrace tune` comes near the best of a grid in a tenth of the grid's time, on three environments.

The grid is every point that the tuner may search whose unrolls fit into --mib, and each is measured like the tuner
measures. Where there are more than --points, a fixed random choice of so many is measured, the time of the whole grid
is scaled up from it, and every point one step beside the sample's best and beside the tuner's choice is measured too: a
sample alone would hardly hold the grid's best. Best against best is decided by measuring the best few and the tuner's
choice again, in turn.

    python -m benchmarks.tune_grid [--env CartPole-v1 ...] [--seconds 1] [--points 200] [--mib 256] [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import time

import numpy as np
from rich.console import Console

from benchmarks.page import stamped, write_sections
from common.config import CONFIGS, Config
from common.errors import HeadraceError
from services.control.bench.jobs import collect_job
from services.control.bench.pipeline import open_pipeline
from services.control.tune.search import Point, Search, Space
from services.control.tune.tuner import Tuning, at, point_of, space_of, tune
from services.control.tune.view import LineView, show
from services.env_server.backends import make_backend

PAGE = CONFIGS.parent / "docs" / "benchmarks.md"
ENVS = ("CartPole-v1", "HalfCheetah-v5", "CrafterReward-v1")
BEST, ROUNDS = 3, 5
SHARE_OF_TIME, SHARE_OF_BEST = 0.1, 0.95


async def grid(config: Config, points: list[Point], seconds: float) -> dict[Point, float]:
    """Measures every point once."""
    rates = {}
    async with open_pipeline() as pipeline:
        for number, point in enumerate(points, 1):
            try:
                rates[point] = (await pipeline.run(at(config, point), seconds)).steps_s
            except HeadraceError:
                rates[point] = 0.0
            print(f"  {number} of {len(points)}: {rates[point]:,.0f} steps/s  {show(point)}", flush=True)
    return rates


async def again(config: Config, points: list[Point], seconds: float) -> dict[Point, float]:
    """Measures points in turn, ROUNDS times; gives the medians."""
    rates: dict[Point, list[float]] = {point: [] for point in points}
    async with open_pipeline() as pipeline:
        for _ in range(ROUNDS):
            for point in rates:
                rates[point].append((await pipeline.run(at(config, point), seconds)).steps_s)
    return {point: statistics.median(values) for point, values in rates.items()}


def fitting(config: Config, space: Space, mib: float) -> list[Point]:
    """Gives the points of the grid for whose observations, of one unroll of each group, `mib` MiB are enough."""
    backend = make_backend(config.env, 1)
    row = sum(math.prod(seen.shape) * np.dtype(seen.dtype).itemsize for seen in backend.spec.observations)
    backend.close()

    def size(point: Point) -> int:
        return point.servers * point.groups * point.envs * point.unroll * row

    return [point for point in space.grid() if size(point) <= mib * (1 << 20)]


def neighbours(space: Space, point: Point) -> set[Point]:
    """Gives the points one value along one size from `point`."""
    moves = {(size, by) for size, _ in space.climbs for by in (-1, 1)}
    return {found for size, by in moves if (found := space.moved(point, size, by)) is not None}


def check(env_id: str, seconds: float, most: int, mib: float) -> str:
    """Tunes from a cold start, measures the grid, and gives a row of the table."""
    config = collect_job(env_id)[0]
    space: Space = space_of(config)
    every = fitting(config, space, mib)
    chosen = random.Random(0).sample(every, min(most, len(every)))
    began = time.monotonic()
    rates = asyncio.run(grid(config, chosen, seconds))
    grid_s = (time.monotonic() - began) * len(every) / len(chosen)
    tuning = Tuning(config, Search(space, point_of(config)), grid_s * SHARE_OF_TIME / 60, seconds)
    asyncio.run(tune(tuning, LineView(Console())))
    tuned_s, mine = time.monotonic() - tuning.began, tuning.search.best
    assert mine is not None
    if len(chosen) < len(every):
        beside = neighbours(space, max(rates, key=lambda point: rates[point])) | neighbours(space, mine)
        rates |= asyncio.run(grid(config, [p for p in every if p in beside and p not in rates], seconds))
    best = sorted(rates, key=lambda point: -rates[point])[:BEST]
    final = asyncio.run(again(config, list(dict.fromkeys([*best, mine])), 2 * seconds))
    top = max(final[point] for point in best)
    sampled = f", {len(chosen)} sampled, {len(rates) - len(chosen)} beside" if len(chosen) < len(every) else ""
    verdict = "yes" if final[mine] >= SHARE_OF_BEST * top and tuned_s <= SHARE_OF_TIME * grid_s else "no"
    return (
        f"| {env_id} | {len(every)}{sampled} | {grid_s:,.0f} s | {top:,.0f} | {tuned_s:.0f} s | "
        f"{len(tuning.search.rates)} | {final[mine]:,.0f} | {final[mine] / top:.0%} | {verdict} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(ENVS))
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--mib", type=float, default=256.0)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    rows = [check(env_id, arguments.seconds, arguments.points, arguments.mib) for env_id in arguments.env]
    heads = (
        "| env | grid, points | its time | its best, steps/s | tuned in | settings | tuned, steps/s | of best | met |"
    )
    table = "\n".join([heads, "|---|---|---|---|---|---|---|---|---|", *rows])
    print(table)
    if arguments.write:
        write_sections(PAGE, {"tune": stamped(table, f"each setting for {arguments.seconds:g} s")})


if __name__ == "__main__":
    main()
