"""Real jobs whose learner is several processes: they end well, and go on when one of those is killed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import ENVIRON, Job, until, write_config

ROOT = Path(__file__).resolve().parents[2]
TREE: dict[str, Any] = {
    "env": {"id": "paced:cartpole", "groups": 2, "envs": 4},
    "rollout": {"unroll": 16},
    "network": {"name": "mlp", "hidden": [32], "normalize_observations": True, "popart": True},
    "algorithm": {"name": "ppo", "epochs": 1},
    "learner": {"replicas": 2, "checkpoint": {"interval_s": 0.5}},
    "stop": {"steps": 10_000},
}


def replicas(job: Job) -> list[psutil.Process]:
    """The processes that the job's learner has started."""
    pid = job.pids().get("learner")
    try:
        return psutil.Process(pid).children() if pid else []
    except psutil.NoSuchProcess:
        return []


def learner_log(job: Job) -> str:
    return (job.run_dir / "logs" / "learner.log").read_text()


async def test_a_job_on_two_replicas_reaches_its_goal_and_leaves_nothing_but_its_run(tmp_path: Path) -> None:
    overrides = ["learner.replicas=2", "stop.steps=8000"]
    with Job(ROOT / "configs" / "cartpole_ppo.yaml", tmp_path / "run", overrides) as job:
        (replica,) = await until(lambda: replicas(job), "the second rank")
        assert await job.ended() == 0, job.text() + learner_log(job)
        assert not replica.is_running()
        assert "trains on 2 replicas, gloo" in learner_log(job)
        result = job.result()
    assert (result["outcome"], result["trained_steps"]) == ("steps", result["steps"])
    line = [sys.executable, "-m", "services.control.cli", "evaluate", str(tmp_path / "run"), "--episodes", "2"]
    evaluated = subprocess.run(line, capture_output=True, text=True, env=ENVIRON, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.parametrize("killed", ["replica", "learner"])
async def test_a_job_goes_on_from_its_checkpoint_when_a_rank_is_killed(tmp_path: Path, killed: str) -> None:
    with Job(write_config(tmp_path / "config.yaml", TREE), tmp_path / "run") as job:
        latest = job.run_dir / "checkpoints" / "latest"
        await until(lambda: job.updates() > 5 and latest.exists(), "a checkpoint")
        learner = psutil.Process(job.pids()["learner"])
        (replica,) = replicas(job)
        (replica if killed == "replica" else learner).kill()
        await until(lambda: not learner.is_running() and not replica.is_running(), "the end of both")
        assert await job.ended() == 0, job.text() + learner_log(job)
        how = "was killed by SIGKILL"
        if killed == "replica":
            how = r"ended with exit code 3: .*replica 1 \(pid \d+\) was killed by SIGKILL"
        assert re.search(rf"learner \(pid \d+\) {how}", job.text()), job.text()
        assert len(re.findall(r"resumes after update [1-9]", learner_log(job))) == 1
        assert len(re.findall("trains on 2 replicas, gloo", learner_log(job))) == 2
        assert job.result()["outcome"] == "steps"
