"""Ctrl-C once, and the job resumed; what a job leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
from jobs import Job, until, write_config

TREE: dict[str, Any] = {
    "env": {"id": "paced:cartpole", "groups": 2, "envs": 4},
    "rollout": {"unroll": 16},
    "network": {"name": "mlp", "hidden": [32], "normalize_observations": True, "popart": True},
    "algorithm": {"name": "ppo", "epochs": 1},
    "stop": {"steps": 12_000},
}


def sockets_dir(job: Job) -> Path:
    """The job's private directory, from the command line of one of its services."""
    line = psutil.Process(job.pids()["env"]).cmdline()
    return Path(line[line.index("--config") + 1]).parent


async def test_ctrl_c_saves_and_resume_goes_on_to_the_end(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", TREE)
    with Job(config, tmp_path / "run") as job:
        await until(lambda: job.updates() >= 5, "some updates")
        pids, sockets = job.pids(), sockets_dir(job)
        assert sockets.stat().st_mode & 0o777 == 0o700
        job.interrupt()
        assert await job.ended() == 0, job.text()
        assert f"headrace train --resume {job.run_dir}" in job.text()
        assert not sockets.exists()
        assert not [pid for pid in pids.values() if psutil.pid_exists(pid)]
        stopped = job.result()
    assert stopped["outcome"] == "stopped"
    assert 0 < stopped["steps"] < 12_000
    with Job(config, tmp_path / "run", resume=True) as job:
        assert await job.ended() == 0, job.text()
        ended = job.result()
    assert ended["outcome"] == "steps"
    assert ended["updates"] > stopped["updates"]
    # Totals go on where they stood: the first job's streams are among the second's.
    assert stopped["streams"].items() <= ended["streams"].items()
    rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    steps = [int(row.split(",")[1]) for row in rows[1:]]
    assert steps == sorted(steps)


async def test_env_and_replay_processes_have_no_torch_mapped(tmp_path: Path) -> None:
    with Job(write_config(tmp_path / "config.yaml", TREE), tmp_path / "run") as job:
        await until(lambda: job.updates() >= 1, "an update")
        mapped = {role: Path(f"/proc/{pid}/maps").read_text() for role, pid in job.pids().items()}
        assert "libtorch" in mapped["learner"]
        assert "torch" not in mapped["env"]
        assert "torch" not in mapped["replay"]


async def test_all_services_in_one_process_end_like_four(tmp_path: Path) -> None:
    with Job(write_config(tmp_path / "config.yaml", TREE), tmp_path / "run", ["--engine", "inline"]) as job:
        assert await job.ended() == 0, job.text()
        assert json.loads((job.run_dir / "result.json").read_text())["outcome"] == "steps"
