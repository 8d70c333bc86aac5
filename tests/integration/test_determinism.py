"""In synchronous mode with one env-server the seed fixes everything."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from jobs import Job, write_config

UPDATES = 50
TREE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "vectorized": False, "groups": 2, "envs": 4},
    "rollout": {"unroll": 16},
    "network": {"name": "mlp", "hidden": [32], "normalize_observations": True},
    "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2, "normalize_returns": True},
    "learner": {"log_s": 1e-9},
    "stop": {"steps": UPDATES * 2 * 4 * 16},
}


async def train(tmp_path: Path, name: str, seed: int) -> tuple[list[dict[str, str]], bytes]:
    """The row of every update, less the clock, and the last checkpoint's tensors."""
    with Job(write_config(tmp_path / f"{name}.yaml", TREE), tmp_path / name, [f"run.seed={seed}"]) as job:
        assert await job.ended() == 0, job.text()
        with (job.run_dir / "progress.csv").open() as file:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
        return rows, next((job.run_dir / "checkpoints").glob("0*/model.safetensors")).read_bytes()


async def test_the_same_seed_gives_the_same_first_50_updates_bit_for_bit(tmp_path: Path) -> None:
    rows, weights = await train(tmp_path, "first", seed=7)
    assert [int(row["updates"]) for row in rows][:UPDATES] == list(range(1, UPDATES + 1))
    assert await train(tmp_path, "second", seed=7) == (rows, weights)
    assert (await train(tmp_path, "other", seed=8))[1] != weights
