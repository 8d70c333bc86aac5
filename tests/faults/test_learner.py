"""What the learner does when its batches are bad, when none come, and when the job is over without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zmq
from jobs import Job, Service, by_hand, short_dir, until, write_config

BASE: dict[str, Any] = {
    "env": {"id": "paced:cartpole", "groups": 2, "envs": 4},
    "rollout": {"unroll": 16},
    "network": {"name": "mlp", "hidden": [8], "normalize_observations": True},
    "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
}


def net(sockets: Path, **more: Any) -> dict[str, Any]:
    act, experience = [f"ipc://{sockets}/act"], [f"ipc://{sockets}/experience"]
    return {"net": {"act": act, "experience": experience, "weights": f"ipc://{sockets}/weights", **more}}


async def test_skipped_updates_neither_stop_nor_stall_an_asynchronous_job(tmp_path: Path) -> None:
    tree = BASE | {
        "env": {**BASE["env"], "id": "paced:poisoned_cartpole"},
        "replay": {"max_policy_lag": 2, "tables": {"experience": {"kind": "fifo", "capacity": 4}}},
        "learner": {"batch": 1, "prefetch": 1},
        "stop": {"steps": 8_000},
    }
    with Job(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as job:
        assert await job.ended() == 0, job.text()
        result = job.result()
        assert result["outcome"] == "steps"
        assert "reward is not finite" in job.text()
        # Far more skips than versions of lag: each would have moved the bound by one.
        assert result["trained_steps"] < result["steps"] - 10 * 64


async def test_the_time_limit_holds_while_no_batch_comes(tmp_path: Path) -> None:
    with short_dir() as sockets:
        config = write_config(tmp_path / "config.yaml", BASE | net(sockets) | {"stop": {"seconds": 4.0}})
        with by_hand(config, tmp_path / "run") as services:
            await until(lambda: (tmp_path / "run" / "progress.csv").exists(), "training")
            services["env"].kill()
            assert await services["learner"].ended(30) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["outcome"] == "seconds"


async def test_a_learner_that_comes_back_to_a_finished_job_says_so_and_a_foreign_one_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with short_dir() as sockets:
        tree = BASE | net(sockets, linger_s=60.0) | {"stop": {"steps": 1_000}}
        config = write_config(tmp_path / "config.yaml", tree)
        # A connection that stays keeps the finished replay-server there.
        guest = zmq.Context.instance().socket(zmq.DEALER)
        guest.connect(f"ipc://{sockets}/experience")
        try:
            with by_hand(config, run) as services:
                assert await services["learner"].ended() == 0
                (run / "result.json").unlink()
                again = Service("learner", config, run)
                assert await again.ended(30) == 0, again.text()
                assert json.loads((run / "result.json").read_text())["outcome"] == "steps"
                foreign = Service("learner", config, tmp_path / "other")
                assert await foreign.ended(30) == 1
                assert "has finished another job" in foreign.text()
        finally:
            guest.close(0)
