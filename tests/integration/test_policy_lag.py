"""The lag between acting and training, read off the versions that every trained step carries."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from jobs import Job, write_config

TREE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "vectorized": False, "groups": 3, "envs": 4},
    "rollout": {"unroll": 8},
    "network": {"name": "mlp", "hidden": [32]},
    "learner": {"log_s": 1e-9},
    "stop": {"steps": 10_000},
}


async def rows(tmp_path: Path, overlay: dict[str, Any]) -> list[dict[str, str]]:
    with Job(write_config(tmp_path / "config.yaml", {**TREE, **overlay}), tmp_path / "run") as job:
        assert await job.ended() == 0, job.text()
        with (job.run_dir / "progress.csv").open() as file:
            return list(csv.DictReader(file))


async def test_synchronous_training_has_policy_lag_0_in_every_sample(tmp_path: Path) -> None:
    lags = [int(row["policy_lag_max"]) for row in await rows(tmp_path, {"algorithm": {"name": "ppo", "epochs": 1}})]
    assert len(lags) > 100
    assert set(lags) == {0}


async def test_asynchronous_training_never_exceeds_its_bound_however_slow_the_learner(tmp_path: Path) -> None:
    overlay = {
        "replay": {"max_policy_lag": 2, "tables": {"experience": {"kind": "fifo", "capacity": 8}}},
        "learner": {"batch": 1, "prefetch": 2, "log_s": 1e-9},
        "algorithm": {"name": "ppo", "epochs": 10, "minibatches": 4},
    }
    trained = await rows(tmp_path, overlay)
    lags = [int(row["policy_lag_max"]) for row in trained]
    assert max(lags) == 2, "the learner is slow enough that the bound is reached"
    # Some were too old: collected, counted, and never trained on.
    assert int(trained[-1]["trained_steps"]) < int(trained[-1]["steps"])


async def test_acting_that_is_held_back_gives_data_that_are_as_many_versions_old(tmp_path: Path) -> None:
    overlay = {
        "inference": {"hold_back": 12},
        "replay": {"max_policy_lag": 30, "tables": {"experience": {"kind": "fifo", "capacity": 4}}},
        "learner": {"batch": 1, "log_s": 1e-9},
        "algorithm": {"name": "impala"},
        # One answer acted in all of a batch: its largest lag is its least.
        "rollout": {"unroll": 1},
        "stop": {"steps": 2000},
    }
    trained = await rows(tmp_path, overlay)
    assert len(trained) > 100
    # Until there are so many versions, the first one acts.
    assert min(int(row["policy_lag_max"]) for row in trained[60:]) >= 12


async def test_weights_go_out_after_every_so_many_updates(tmp_path: Path) -> None:
    overlay = {
        "replay": {"max_policy_lag": 30, "tables": {"experience": {"kind": "fifo", "capacity": 4}}},
        "learner": {"batch": 1, "log_s": 1e-9, "publish_every": 3},
        "algorithm": {"name": "impala"},
        "rollout": {"unroll": 1},
        "stop": {"steps": 2000},
    }
    # A row is written after its update.
    acted = {int(row["updates"]) - 1 - int(row["policy_lag_max"]) for row in await rows(tmp_path, overlay)}
    assert len(acted) > 5
    assert {version % 3 for version in acted} == {0}
