"""`kill -9` of each service during a real job: four new processes, and not one step lost or counted twice."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import ROLES, Job, stream_lines, until, write_config

UNROLL, ENVS = 32, 8
# Stepped one by one, every step of every environment is a decision: a stream's steps are its unrolls times T times B.
BASE: dict[str, Any] = {
    "env": {"id": "paced:cartpole", "groups": 2, "envs": ENVS},
    "rollout": {"unroll": UNROLL},
    "learner": {"lr": 1e-3, "checkpoint": {"interval_s": 0.5, "keep": 50}},
    "network": {"name": "mlp", "hidden": [32]},
    "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2},
    "net": {"resend_s": 0.5},
    "stop": {"steps": 120_000},
}
MODES: dict[str, dict[str, Any]] = {
    "lag0": {},
    "async": {
        "replay": {"max_policy_lag": 10, "tables": {"experience": {"kind": "fifo", "capacity": 8}}},
        "learner": {**BASE["learner"], "batch": 2},
    },
}


async def kill(job: Job, role: str) -> None:
    """Kills one service and waits until another process has its place and training goes on."""
    before, updates = job.pids(), job.updates()
    os.kill(before[role], signal.SIGKILL)
    await until(lambda: job.pids().get(role) not in (None, before[role]), f"a new {role}")
    await until(lambda: job.updates() > (0 if role == "learner" else updates + 8), f"updates after {role} died")
    assert {r: pid for r, pid in job.pids().items() if r != role} == {r: p for r, p in before.items() if r != role}


def check_counters(job: Job, killed: int) -> None:
    """The learner's totals are those of the streams, `killed` env-servers' among them, each unroll once."""
    result = job.result()
    streams = {int(life): tuple(totals) for life, totals in result["streams"].items()}
    assert result["steps"] == sum(steps for _, steps, _ in streams.values())
    assert all(steps == frames == unrolls * UNROLL * ENVS for unrolls, steps, frames in streams.values())
    said = stream_lines(job.run_dir / "logs" / "env-0.log")
    assert said
    assert {life: streams[life] for life in said} == said
    assert len(streams) == 2 * (1 + killed)


@pytest.mark.parametrize("mode", MODES)
async def test_each_service_killed_in_turn_is_replaced_and_no_step_is_lost(tmp_path: Path, mode: str) -> None:
    config = write_config(tmp_path / "config.yaml", {**BASE, **MODES[mode]})
    with Job(config, tmp_path / "run") as job:
        await until(lambda: job.updates() > 20, "the first updates")
        for role in ROLES:
            await kill(job, role)
        assert await job.ended() == 0, job.text()
        for name in ("env-0", "inference-0", "replay-0", "learner"):
            assert re.search(rf"{name} \(pid \d+\) was killed by SIGKILL", job.text()), job.text()
        assert job.result()["outcome"] == "steps"
        check_counters(job, killed=1)


@pytest.mark.parametrize("mode", MODES)
async def test_a_learner_that_comes_back_from_an_older_checkpoint_counts_no_step_twice(
    tmp_path: Path, mode: str
) -> None:
    config = write_config(tmp_path / "config.yaml", {**BASE, **MODES[mode]})
    with Job(config, tmp_path / "run") as job:
        checkpoints = job.run_dir / "checkpoints"
        await until(lambda: checkpoints.is_dir() and len(list(checkpoints.glob("0*"))) >= 3, "three checkpoints")
        learner = psutil.Process(job.pids()["learner"])
        # Stopped first: it would write `latest` again before it is killed.
        learner.suspend()
        await until(lambda: learner.status() == psutil.STATUS_STOPPED, "the learner's standing still")
        oldest = min(path.name for path in checkpoints.glob("0*"))
        (checkpoints / "latest").write_text(oldest)
        await kill(job, "learner")
        assert f"resumes after update {int(oldest)}" in (job.run_dir / "logs" / "learner.log").read_text()
        assert await job.ended() == 0, job.text()
        check_counters(job, killed=0)
