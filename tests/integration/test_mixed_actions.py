"""A job whose actions are a Dict of all three kinds, masked by the environment's info: trained, ended, evaluated."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, write_config

from services.control.evaluate import evaluate_run

TREE: dict[str, Any] = {
    "env": {"id": "mixed:Mixed", "groups": 2, "envs": 4, "info_mask": True},
    "rollout": {"unroll": 16},
    "learner": {"log_s": 1e-9, "on_nan": "stop"},
    "network": {"name": "mlp", "hidden": [16], "action_mask": "action_mask"},
    "stop": {"steps": 600},
}
ASYNCHRONOUS: dict[str, Any] = {
    "rollout": {"unroll": 16, "tables": ["experience", "replayed"]},
    "replay": {
        "max_policy_lag": 20,
        "tables": {"experience": {"kind": "fifo", "capacity": 8}, "replayed": {"kind": "unrolls", "capacity": 1000}},
    },
    "learner": {**TREE["learner"], "batch": 2, "replayed": {"table": "replayed", "per_online": 3}},
}


@pytest.mark.parametrize(
    "overlay",
    [
        pytest.param({"algorithm": {"name": "ppo", "epochs": 2}}, id="ppo"),
        pytest.param({**ASYNCHRONOUS, "algorithm": {"name": "laser"}}, id="laser"),
    ],
)
async def test_a_job_on_a_masked_dict_of_actions_ends_and_its_checkpoint_plays(
    overlay: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", {**TREE, **overlay})
    with Job(config, tmp_path / "run", ["--engine", "inline"]) as job:
        assert await job.ended() == 0, job.text()
        assert job.result()["outcome"] == "steps"
    with (job.run_dir / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row[name]) for row in rows for name in ("policy_loss", "value_loss", "entropy") if row[name]]
    assert losses
    assert all(map(math.isfinite, losses))
    evaluate_run(job.run_dir, episodes=4, video=False, seed=1, checkpoint="latest")
    played = json.loads((job.run_dir / "evaluation.json").read_text())
    assert played["mean_length"] == 6.0
    assert all(0.0 <= r <= 6.0 for r in played["returns"])
