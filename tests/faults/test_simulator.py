"""A simulator that hangs or crashes in a real job costs its own env-server's restart, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, until, write_config

BASE: dict[str, Any] = {
    "env": {"id": "faulty:make", "groups": 2, "envs": 4, "step_deadline_s": 2.0},
    "rollout": {"unroll": 32},
    "network": {"name": "mlp", "hidden": [16]},
    "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
    "stop": {"steps": 12_000},
}


@pytest.mark.parametrize(
    ("fault", "ending"),
    [
        ("sleeps", r"ended with exit code 70: .*a step of env-0/\d has not come back"),
        # Nothing but the timer, which needs no lock, can end this one.
        ("spins", r"ended with exit code 1: "),
        ("crashes", r"was killed by SIGSEGV"),
    ],
)
async def test_a_step_that_does_not_come_back_costs_a_restart_of_its_env_server(
    tmp_path: Path, fault: str, ending: str
) -> None:
    marker = tmp_path / "went-wrong"
    env = {**BASE["env"], "kwargs": {"fault": fault, "marker": str(marker)}}
    config = write_config(tmp_path / "config.yaml", {**BASE, "env": env})
    with Job(config, tmp_path / "run") as job:
        await until(marker.exists, "the fault")
        assert await job.ended() == 0, job.text()
    assert re.search(rf"env-0 \(pid \d+\) {ending}", job.text()), job.text()
    assert job.text().count("(pid ") == job.text().count("env-0 (pid "), "another service was lost too"
    assert job.result()["outcome"] == "steps"
