"""How `headrace tune` searches, what it keeps, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from jobs import PATIENCE_S
from rich.console import Console

from common.config import CONFIGS, load
from common.errors import ConfigError, HeadraceError
from services.control.bench.jobs import collect_job
from services.control.bench.pipeline import Measured
from services.control.tune.search import Point, Search, Space
from services.control.tune.tuner import (
    SEARCH_SHARE,
    Tuning,
    at,
    bottleneck,
    check,
    overlay,
    point_of,
    space_of,
    tune,
    write,
)
from services.control.tune.view import LineView

SPACE = Space(
    envs=tuple(1 << k for k in range(14)),
    servers=(1, 2),
    inference=(1, 2),
    groups=(1, 2, 3, 4),
    merge=(False, True),
    unroll=(16, 32, 64, 128),
)
COLD = Point(8, 1, 1, 2, True, 64)
ASYNC, SYNC = CONFIGS / "cartpole_ppo_async.yaml", CONFIGS / "cartpole_ppo.yaml"
COMMAND = (sys.executable, "-m", "services.control.cli", "tune", str(ASYNC))


def two_cores(point: Point, env_s: float, pass_s: float) -> float:
    """Steps per second of a made-up machine: costs per message and per environment, caches that overflow."""
    env = point.envs * env_s * (1 + point.envs / 20_000) + 6e-5
    inference = point.envs * pass_s * (1 + point.envs / 30_000) + (1.9e-4 if point.merge else 2.5e-4)
    per_second = min(
        point.servers / env,
        point.inference / inference,
        2 / (env + inference),
        point.groups * point.servers / (env + inference + 1e-4),
    )
    return per_second * point.envs * (1 - 1 / point.unroll)


def drive(search: Search, rate: Callable[[Point], float], most: int = 10_000) -> list[Point]:
    """Answers a search until it ends, or `most` times, and hurries it near the end; gives what it asked for."""
    asked: list[Point] = []
    points = search.points(lambda: len(asked) > SEARCH_SHARE * most)
    point = next(points)
    with suppress(StopIteration):
        while len(asked) < most:
            asked.append(point)
            point = points.send(rate(point))
    return asked


@pytest.mark.parametrize(("env_s", "pass_s"), [(1e-7, 2.5e-7), (2.2e-5, 1e-6), (2.5e-4, 3e-4)])
@pytest.mark.parametrize("seed", range(5))
def test_a_cold_start_comes_within_5_percent_of_the_grid_in_a_tenth_of_its_points(
    env_s: float, pass_s: float, seed: int
) -> None:
    noise, grid = random.Random(seed), SPACE.grid()
    search = Search(SPACE, COLD)
    drive(search, lambda point: two_cores(point, env_s, pass_s) * noise.gauss(1, 0.02), len(grid) // 10)
    best = max(two_cores(point, env_s, pass_s) for point in grid)
    assert search.best is not None
    assert two_cores(search.best, env_s, pass_s) >= 0.95 * best


def test_gains_within_noise_are_not_followed() -> None:
    search = Search(SPACE, COLD, kicks=0)
    asked = drive(search, lambda point: 100.0 + point.envs * 1e-3)
    # A wide step is tried once; beside the best of the finals one more is measured.
    assert max(point.envs for point in asked) == 64
    assert len(set(asked)) <= 30


def test_sizes_that_only_gain_together_are_found_by_starting_anew() -> None:
    def rate(point: Point) -> float:
        together = point.groups == 4 and point.servers == 1 and not point.merge
        return two_cores(point, 1e-7, 2.5e-7) * (1.5 if together else 0.9 if not point.merge else 1.0)

    best = max(map(rate, SPACE.grid()))
    alone, anew = Search(SPACE, COLD, kicks=0), Search(SPACE, COLD)
    drive(alone, rate)
    drive(anew, rate)
    assert alone.best is not None
    assert anew.best is not None
    assert rate(alone.best) < 0.9 * best
    assert rate(anew.best) >= 0.95 * best


def test_in_a_hurry_the_best_so_far_are_measured_again_and_that_is_all() -> None:
    search = Search(SPACE, COLD)
    points = search.points(lambda: True)
    asked = [next(points)]
    with suppress(StopIteration):
        while True:
            asked.append(points.send(float(asked[-1].envs)))
    assert {point.envs for point in asked} == {4, 8, 16}


def test_a_synchronous_job_keeps_the_steps_of_its_batch() -> None:
    config = load(SYNC, (), {})
    space = space_of(config)
    grid = space.grid()
    assert len(grid) > 20
    for point in grid:
        tuned = at(config, point)
        assert point.servers * point.groups * point.envs * point.unroll == 2 * 16 * 64
        assert point.unroll >= 8
        assert tuned.inference.max_batch == config.inference.max_batch
    asked = drive(Search(space, point_of(config)), lambda point: two_cores(point, 1e-7, 2.5e-7))
    assert {at(config, p).env.servers * p.groups * p.envs * p.unroll for p in asked} == {2048}


def test_an_asynchronous_job_starts_from_itself_and_its_passes_fit_its_requests() -> None:
    config = load(ASYNC, ["env.envs=24", "rollout.unroll=48"], {})
    space = space_of(config)
    assert 24 in space.envs
    assert 48 in space.unroll
    assert point_of(config) == Point(24, 1, 1, 2, True, 48)
    tuned = at(config, Point(512, 3, 2, 2, True, 32))
    assert (tuned.env.servers, tuned.env.groups, tuned.env.envs) == (3, 2, 512)
    assert (tuned.inference.servers, tuned.inference.max_batch) == (2, 512 * 2 * 2)
    assert at(config, Point(512, 3, 2, 2, False, 32)).inference.max_batch == 512
    assert tuned.rollout.unroll == 32


def test_the_unroll_of_a_ring_is_not_touched() -> None:
    ring = "replay.tables={ring: {kind: uniform, capacity: 4096}}"
    config = load(None, [ring, "rollout.tables=[ring]", "learner.table=ring", "learner.batch=8"], {})
    assert space_of(config).unroll == (64,)


def test_sizes_that_the_job_itself_would_be_refused_with_are_no_candidates() -> None:
    config = load(CONFIGS / "cartpole_dqn.yaml", (), {})
    space = space_of(config)
    # With 32 items drawn per step, inserts of 4 steps of each environment and draws of 512 items do not lock each other
    # out of an error buffer of 2048 as long as (32 · 4 · envs + 512) / 2 are no more than it.
    assert max(point.envs for point in space.grid()) == 16
    with pytest.raises(ConfigError, match="error_buffer=2048 would deadlock"):
        check(at(config, replace(point_of(config), envs=32)))
    asked = drive(Search(space, point_of(config)), lambda point: float(point.envs))
    assert max(point.envs for point in asked) == 16


def test_a_job_that_is_refused_as_it_is_is_not_tuned() -> None:
    config = load(CONFIGS / "cartpole_dqn.yaml", ["env.envs=4096"], {})
    with pytest.raises(ConfigError, match="would deadlock"):
        space_of(config)


def test_agents_come_in_whole_environments() -> None:
    space = space_of(load(CONFIGS / "spread_ppo.yaml", (), {}))
    assert len(space.envs) > 10
    assert all(envs % 3 == 0 for envs in space.envs)
    for job in collect_job("mpe2.simple_spread_v3:parallel_env"):
        assert job.env.envs % 3 == 0


async def test_a_measurement_does_not_outlast_the_time_that_is_given() -> None:
    null = ("env.id=headrace/Null-v0", "env.kwargs={step_s: 0.0005, sleep: true}", "env.envs=4", "env.groups=1")
    config = load(ASYNC, null, {})
    tuning = Tuning(config, Search(space_of(config), point_of(config)), 1.0, 0.2)

    class Late:
        """Leaves half a second once a point was measured, as if there had been many, each short; the next is long."""

        def measuring(self, tuning: Tuning, point: Point) -> None: ...

        def measured(self, tuning: Tuning, point: Point, rate: float) -> None:
            tuning.search.rates[COLD] = [0.0] * 10_000
            tuning.seconds, tuning.began = 600.0, time.monotonic() - 59.5

    await asyncio.wait_for(tune(tuning, Late()), PATIENCE_S)
    assert len(tuning.search.rates[point_of(config)]) == 1


def test_the_bottleneck_is_the_busiest_role_if_it_is_busy() -> None:
    assert bottleneck({"env": 0.83, "inference": 0.2, "replay": 0.1}) == (
        "The bottleneck of collecting is the env role: of their time, env-servers 83% in the simulator, "
        "inference-servers 20% in forward passes, the replay-server 10% at work."
    )
    assert bottleneck({"env": 0.1, "inference": 0.3, "replay": 0.9}).startswith(
        "The bottleneck of collecting is the replay"
    )
    assert bottleneck({"env": 0.1, "inference": 0.3, "replay": 0.2}).startswith(
        "No role is the bottleneck of collecting"
    )


def test_the_winner_of_the_last_finals_wins_however_often_another_was_in_them() -> None:
    search = Search(SPACE, COLD)
    old, new, lucky = (Point(envs, 1, 1, 2, True, 64) for envs in (64, 128, 256))
    search.rates = {old: [100.0] * 13, new: [120.0] * 4, lucky: [300.0]}
    assert search.best == new


def test_one_lucky_figure_does_not_win() -> None:
    search = Search(SPACE, COLD)
    lucky, steady, unsteady = (Point(envs, 1, 1, 2, True, 64) for envs in (64, 128, 256))
    search.rates = {lucky: [900.0], steady: [500.0, 510.0, 505.0], unsteady: [800.0, 100.0, 120.0]}
    assert search.best == steady


def test_the_overlay_is_the_job_with_its_new_sizes(tmp_path: Path) -> None:
    config = load(ASYNC, ["learner.lr=5e-4"], {})
    tuning = Tuning(config, Search(SPACE, COLD), 1.0, 1.0)
    point = Point(512, 2, 1, 3, True, 32)
    tuning.search.rates = {COLD: [1000.0], point: [4000.0]}
    tuning.busy = {point: {"env": 0.2, "inference": 0.9}}
    text = overlay(tuning)
    assert "4.00 times the 1k of the job as it was; 2 settings measured" in text
    assert "The bottleneck of collecting is the inference role" in text
    assert "a batch of 2 unrolls is 32768 steps now" in text
    path = tmp_path / "tuned.yaml"
    write(tuning, path)
    assert path.read_text() == text
    tuning.search.rates = {point: [4000.0]}
    assert "; 1 setting measured" in overlay(tuning)
    assert load(path, (), {}) == at(config, point)


async def test_a_job_that_makes_no_step_while_it_is_measured_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow:
        async def run(self, *_: object) -> Measured:
            return Measured(0.0, {"env": 1.0})

    @asynccontextmanager
    async def opened() -> AsyncIterator[Slow]:
        yield Slow()

    monkeypatch.setattr("services.control.tune.tuner.open_pipeline", opened)
    tuning = Tuning(load(ASYNC, (), {}), Search(SPACE, COLD), 1e-6, 0.2)
    with pytest.raises(HeadraceError, match="no step") as raised:
        await tune(tuning, LineView(Console()))
    assert "--seconds" in raised.value.remedy


def test_ctrl_c_writes_the_best_so_far_and_leaves_no_process(tmp_path: Path) -> None:
    null = ("env.id=headrace/Null-v0", "env.kwargs={step_s: 0.0005, sleep: true}", "env.envs=4")
    output = tmp_path / "tuned.yaml"
    with subprocess.Popen(
        [*COMMAND, *null, "--minutes", "5", "--seconds", "0.3", "--output", str(output)],
        cwd=CONFIGS.parent,
        env={key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert "steps/s  env 1 x 2 groups of 4" in first, first
            family = psutil.Process(process.pid).children(recursive=True)
            assert family
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 0, out
    assert f"train with: headrace train {output}" in out
    assert load(output, (), {}).env.id == "headrace/Null-v0"
    _, left = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert not left


def test_a_directory_that_is_not_there_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--output", str(tmp_path / "no" / "x.yaml")],
        cwd=CONFIGS.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    assert "there is no directory" in done.stderr
