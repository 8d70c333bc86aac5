"""`kill -9` of each service during a real job: four new processes, and not one step lost or counted twice.

And of a replay-server with a ring, which loses what came after its checkpoint, and says how much.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import ROLES, Job, stream_lines, until, write_config

from services.replay_server.ring import checkpoint

UNROLL, SHORT, ENVS = 32, 4, 8
# Stepped one by one, every step of every environment is a decision: a stream's steps are its unrolls times T times B.
BASE: dict[str, Any] = {
    "env": {"id": "paced:cartpole", "groups": 2, "envs": ENVS},
    "rollout": {"unroll": UNROLL},
    "learner": {"lr": 1e-3, "checkpoint": {"interval_s": 0.5, "keep": 50}},
    "network": {"name": "mlp", "hidden": [32]},
    "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2},
    "net": {"resend_s": 0.5},
    # Twice what passes until the last of four kills is got over.
    "stop": {"steps": 40_000},
}
MODES: dict[str, dict[str, Any]] = {
    "lag0": {},
    "async": {
        "replay": {"max_policy_lag": 10, "tables": {"experience": {"kind": "fifo", "capacity": 8}}},
        "learner": {**BASE["learner"], "batch": 2},
    },
}

OFF_POLICY: dict[str, Any] = {
    **BASE,
    "rollout": {"unroll": SHORT},
    "replay": {
        "checkpoint_s": 0.5,
        "tables": {
            "experience": {
                "kind": "uniform",
                "capacity": 100_000,
                "min_size": 500,
                "samples_per_insert": 4,
                "error_buffer": 512,
                "discount": 0.99,
            }
        },
    },
    "learner": {"lr": 1e-3, "batch": 32},
    "algorithm": {"name": "dqn"},
    "stop": {"steps": 16_000},
}


async def kill(job: Job, role: str) -> None:
    """Kills one service and waits until another process has its place and training goes on."""
    before, updates = job.pids(), job.updates()
    os.kill(before[role], signal.SIGKILL)
    await until(lambda: job.pids().get(role) not in (None, before[role]), f"a new {role}")
    await until(lambda: job.updates() > (0 if role == "learner" else updates + 8), f"updates after {role} died")
    assert {r: pid for r, pid in job.pids().items() if r != role} == {r: p for r, p in before.items() if r != role}


def totals(job: Job, unroll: int) -> dict[int, tuple[int, int, int]]:
    """The totals of each stream, of which the learner's are the sum, each unroll once."""
    result = job.result()
    streams: dict[int, tuple[int, int, int]] = {int(life): tuple(of) for life, of in result["streams"].items()}
    assert result["steps"] == sum(steps for _, steps, _ in streams.values())
    assert all(steps == frames == unrolls * unroll * ENVS for unrolls, steps, frames in streams.values())
    return streams


def check_counters(job: Job, killed: int) -> None:
    """The learner's totals are those of the streams, `killed` env-servers' among them, and what these say of them."""
    streams = totals(job, UNROLL)
    said = stream_lines(job.run_dir / "logs" / "env-0.log")
    assert said
    assert {life: streams[life] for life in said} == said
    assert len(streams) == 2 * (1 + killed)


@pytest.mark.parametrize("mode", MODES)
async def test_each_service_killed_in_turn_is_replaced_and_no_step_is_lost(tmp_path: Path, mode: str) -> None:
    config = write_config(tmp_path / "config.yaml", {**BASE, **MODES[mode]})
    with Job(config, tmp_path / "run") as job:
        await until(lambda: job.updates() > 4, "the first updates")
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


async def test_a_killed_replay_server_goes_on_from_its_rings_checkpoint_and_says_what_came_after(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path / "config.yaml", OFF_POLICY)
    with Job(config, tmp_path / "run") as job:
        path = job.run_dir / "replay" / "0" / "experience"
        await until(lambda: path.exists() and job.updates() > 20, "a checkpoint amid updates")
        replay = psutil.Process(job.pids()["replay"])
        # Stopped first: what it holds and what it has saved are then as they will be found.
        replay.suspend()
        await until(lambda: replay.status() == psutil.STATUS_STOPPED, "the replay-server's standing still")
        with checkpoint.read(path) as saved:
            assert saved is not None
            inserts = saved["table"]["counts"][0]
        inserted = job.metric("env", "headrace_env_steps_total")
        assert inserted is not None
        await kill(job, "replay")
        assert await job.ended() == 0, job.text()
        log = (job.run_dir / "logs" / "replay-0.log").read_text()
        assert re.search(rf"table experience is back with \d+ items of {inserts} steps inserted", log), log
        lost = [int(said) for said in re.findall(r"table experience has lost (\d+) steps that came after its", log)]
        # Of each of the two groups one unroll may be stored unanswered, and one more answer be under way.
        assert 0 <= max(lost, default=0) - (inserted - inserts) <= 2 * 2 * SHORT * ENVS, log
        assert job.result()["outcome"] == "steps"
        assert len(totals(job, SHORT)) == 2
