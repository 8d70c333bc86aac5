"""A job on Atari to beyond the ends of games, whose scores are below 0 at first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jobs import Job, write_config

TREE: dict[str, Any] = {
    # A game is cut after some 6 points, which a beginner loses.
    "env": {"id": "ALE/Pong-v5", "groups": 2, "envs": 4, "kwargs": {"max_num_frames_per_episode": 1200}},
    "rollout": {"unroll": 32},
    "network": {"name": "nature_cnn", "shared": True},
    "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
    "stop": {"steps": 3000},
}


async def test_pong_is_played_to_the_end_of_games_and_their_scores_are_counted(tmp_path: Path) -> None:
    with Job(write_config(tmp_path / "config.yaml", TREE), tmp_path / "run") as job:
        assert await job.ended() == 0, job.text()
        assert "restarting" not in job.text()
    log = (job.run_dir / "logs" / "env-0.log").read_text()
    counted = [json.loads(text) for text in re.findall(r"counted (.+)", log)]
    assert len(counted) == 2
    assert all(group["games"] >= 4 and -9 <= group["score"] / group["games"] <= -1 for group in counted)
