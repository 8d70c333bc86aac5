"""In synchronous mode with one env-server the seed fixes everything, the resets of a vector environment included."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from jobs import Job, write_config

from services.learner_server.checkpoint import find

UPDATES = 50
SLOTS = 2 * 4 * 16  # of one update: groups x environments x unroll, where a reset takes one and counts as no step
TREE: dict[str, Any] = {
    "env": {"id": "gymnasium.envs.classic_control:CartPole-v1", "groups": 2, "envs": 4},
    "rollout": {"unroll": 16},
    "network": {"name": "mlp", "hidden": [32], "normalize_observations": True, "popart": True},
    "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2},
    "learner": {"log_s": 1e-9},
    "stop": {"steps": UPDATES * SLOTS},
}


async def train(tmp_path: Path, name: str, seed: int) -> tuple[list[dict[str, str]], bytes]:
    """The rows of the first 50 updates, less the clock, and the last checkpoint's tensors."""
    with Job(write_config(tmp_path / f"{name}.yaml", TREE), tmp_path / name, [f"run.seed={seed}"]) as job:
        assert await job.ended() == 0, job.text()
        with (job.run_dir / "progress.csv").open() as file:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
        return rows[:UPDATES], (find(job.run_dir) / "model.safetensors").read_bytes()


async def test_the_same_seed_gives_the_same_first_50_updates_bit_for_bit(tmp_path: Path) -> None:
    rows, weights = await train(tmp_path, "first", seed=7)
    assert [int(row["updates"]) for row in rows] == list(range(1, UPDATES + 1))
    assert 0 < int(rows[-1]["trained_steps"]) < UPDATES * SLOTS
    assert await train(tmp_path, "second", seed=7) == (rows, weights)
    assert (await train(tmp_path, "other", seed=8))[1] != weights
