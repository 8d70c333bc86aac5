"""With several inference-servers, the env-servers of one that dies move to a live one, and back when it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, until, write_config

BASE: dict[str, Any] = {
    "env": {"id": "paced:cartpole", "servers": 2, "groups": 1, "envs": 4},
    "inference": {"servers": 2},
    "rollout": {"unroll": 32},
    "network": {"name": "mlp", "hidden": [16]},
    "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
    "stop": {"steps": 1_000_000_000},
}


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_env_servers_move_to_a_live_inference_server_and_return(tmp_path: Path, fault: signal.Signals) -> None:
    config = write_config(tmp_path / "config.yaml", {**BASE, "net": {"deadline_s": 5.0}})
    with Job(config, tmp_path / "run") as job:
        await until(lambda: job.updates() > 5, "the first updates")
        first = job.pids()["inference"]
        os.kill(first, fault)
        log = job.run_dir / "logs" / "env-0.log"
        await until(lambda: "moves to the inference-server" in log.read_text(), "a move")
        updates = job.updates()
        await until(lambda: job.updates() > updates + 5, "updates after the move")
        if fault == signal.SIGSTOP:
            os.kill(first, signal.SIGCONT)
        await until(lambda: "back to the inference-server" in log.read_text(), "the way back")
        assert "moves to" not in (job.run_dir / "logs" / "env-1.log").read_text()
        job.interrupt()
        assert await job.ended() == 0, job.text()
        assert job.result()["outcome"] == "stopped"
