"""Jobs that train from rings: the replay ratio they promise, several shards, and stored unrolls mixed with new ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, until, write_config

MIN_SIZE, BATCH, BUFFER = 200, 32, 512
TREE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "groups": 1, "envs": 4},
    "rollout": {"unroll": 8},
    "replay": {
        "tables": {"experience": {"kind": "prioritized", "capacity": 20_000, "n_step": 3, "discount": 0.99}},
    },
    "learner": {"batch": BATCH, "lr": 1e-3},
    "network": {"name": "mlp", "hidden": [32], "activation": "relu"},
    "algorithm": {"name": "dqn", "importance": 0.4},
    "stop": {"steps": 4000},
}


def coupled(tree: dict[str, Any], ratio: float) -> dict[str, Any]:
    limits = {"min_size": MIN_SIZE, "samples_per_insert": ratio, "error_buffer": BUFFER}
    return {**tree, "replay": {"tables": {"experience": {**tree["replay"]["tables"]["experience"], **limits}}}}


@pytest.mark.parametrize(
    ("ratio", "more", "waits"),
    [
        pytest.param(
            16.0,
            {"network": {"name": "mlp", "hidden": [512, 512], "activation": "relu"}, "stop": {"steps": 2000}},
            "insert",
            id="slow learner",
        ),
        # An update for every 32 steps, which take several times as long.
        pytest.param(1.0, {"env": {"id": "paced:cartpole", "groups": 1, "envs": 4}}, "sample", id="slow environment"),
    ],
)
async def test_steps_are_drawn_as_often_as_the_table_promises(
    tmp_path: Path, ratio: float, more: dict[str, Any], waits: str
) -> None:
    config = write_config(tmp_path / "config.yaml", coupled({**TREE, **more}, ratio))
    blocked = rf'headrace_replay_limiter_blocked_seconds_total{{[^}}]*side="{waits}"[^}}]*}}'
    with Job(config, tmp_path / "run") as job:
        await until(lambda: (job.metric("replay", blocked) or 0.0) > 0.0, f"the limiter to hold the {waits} side")
        assert await job.ended() == 0, job.text()
        result = job.result()
    ahead = ratio * (result["steps"] - MIN_SIZE) - result["trained_steps"]
    # What was drawn and not trained on any more: a batch in the queue, one on its way, one in hand.
    assert -BUFFER <= ahead <= BUFFER + 3 * BATCH


SEQUENCES = {"kind": "prioritized", "capacity": 20_000, "sequence": 24, "period": 8, "burn_in": 8}


@pytest.mark.parametrize(
    ("env_id", "algorithm", "table", "network"),
    [
        ("CartPole-v1", {"name": "r2d2", "burn_in": 8, "n_step": 3}, SEQUENCES, {"lstm": 16, "last_action": True}),
        ("CartPole-v1", {"name": "sac"}, {}, {}),
        ("Pendulum-v1", {"name": "sac", "quantiles": 5, "drop": 1}, {}, {}),
        ("Pendulum-v1", {"name": "td3"}, {}, {}),
    ],
    ids=["r2d2", "sac, choices", "tqc", "td3"],
)
async def test_each_family_trains_on_items_with_first_priorities_of_its_actors(
    tmp_path: Path, env_id: str, algorithm: dict[str, Any], table: dict[str, Any], network: dict[str, Any]
) -> None:
    tree: dict[str, Any] = {
        **TREE,
        "env": {"id": env_id, "groups": 1, "envs": 4},
        "replay": {"tables": {"experience": table or TREE["replay"]["tables"]["experience"]}},
        "network": {**TREE["network"], **network},
        "algorithm": {**algorithm, "actor_priorities": True},
        "stop": {"steps": 1000},
    }
    with Job(write_config(tmp_path / "config.yaml", coupled(tree, 1.0 if table else 8.0)), tmp_path / "run") as job:
        assert await job.ended() == 0, job.text()
        assert job.result()["updates"] > 10


async def test_a_job_goes_on_with_the_other_shard_while_one_is_away(tmp_path: Path) -> None:
    tree = {**TREE, "env": {"id": "paced:cartpole", "groups": 2, "envs": 4}, "stop": {"steps": 60_000}}
    tree["replay"] = {**TREE["replay"], "servers": 2}
    config = write_config(tmp_path / "config.yaml", tree)
    with Job(config, tmp_path / "run") as job:
        await until(lambda: job.updates() > 200, "updates from both shards")
        logs = [job.run_dir / "logs" / f"replay-{i}.log" for i in range(2)]
        assert all("env-0 says Hello" in log.read_text() for log in logs)
        away = job.pids()["replay"]
        os.kill(away, signal.SIGSTOP)
        updates = job.updates()
        await until(lambda: job.updates() > updates + 200, "updates from the shard that is left")
        os.kill(away, signal.SIGCONT)
        job.interrupt()
        assert await job.ended() in (0, 130), job.text()


async def test_a_job_goes_on_while_the_env_server_of_one_shard_is_away(tmp_path: Path) -> None:
    paced = {"id": "paced:cartpole", "servers": 2, "groups": 1, "envs": 4}
    tree = coupled({**TREE, "env": paced, "stop": {"steps": 1_000_000}}, 8.0)
    tree["replay"] |= {"servers": 2, "group_deadline_s": 1.0}
    with Job(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as job:
        await until(lambda: job.updates() > 100, "updates from both shards")
        away = job.pids()["env"]
        os.kill(away, signal.SIGSTOP)
        # By then the limiter of the shard without inserts holds draws back.
        updates = job.updates() + 2 * BUFFER // BATCH
        await until(lambda: job.updates() > updates + 200, "updates from the shard that is left")
        assert "gave nothing of 'experience' for 1 s" in (job.run_dir / "logs" / "learner.log").read_text()
        os.kill(away, signal.SIGCONT)
        job.interrupt()
        assert await job.ended() in (0, 130), job.text()


async def test_laser_trains_on_stored_columns_beside_new_ones(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        **TREE,
        "rollout": {"unroll": 8, "tables": ["experience", "replayed"]},
        "replay": {
            "max_policy_lag": 20,
            "tables": {
                "experience": {"kind": "fifo", "capacity": 4},
                "replayed": {"kind": "unrolls", "capacity": 2000},
            },
        },
        "learner": {"batch": 1, "replayed": {"table": "replayed", "per_online": 3}},
        "algorithm": {"name": "laser"},
    }
    with Job(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as job:
        assert await job.ended() == 0, job.text()
        result = job.result()
    # Each batch has its own columns and three times as many stored ones.
    assert result["trained_steps"] == result["updates"] * 4 * (4 * 8)
    assert 0 < result["updates"] * 4 * 8 <= result["steps"]
