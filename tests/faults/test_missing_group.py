"""Synchronous training with two env-servers, one of which dies and does not come back."""

from __future__ import annotations

import itertools
import json
import urllib.request
from pathlib import Path

from jobs import Service, by_hand, short_dir, until, watched, write_config

NOTICE = "the batch goes without env-1/0"


async def test_training_goes_on_with_the_other_env_server_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with short_dir() as sockets:
        tree = {
            "env": {"id": "paced:cartpole", "groups": 1, "envs": 4},
            "rollout": {"unroll": 16},
            "replay": {"group_deadline_s": 1.0},
            "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
            "net": {
                "act": [f"ipc://{sockets}/act"],
                "experience": [f"ipc://{sockets}/experience"],
                "weights": f"ipc://{sockets}/weights",
            },
        }
        config = write_config(tmp_path / "config.yaml", tree)
        with by_hand(config, run) as services:
            services["other"] = Service("env", config, run, index=1)

            def batches_of(envs: int) -> bool:
                rows = (run / "progress.csv").read_text().splitlines() if (run / "progress.csv").exists() else []
                columns = (
                    [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]] if rows else []
                )
                steps = [(int(c["updates"]), int(c["trained_steps"])) for c in columns]
                return any(b[1] - a[1] == (b[0] - a[0]) * 16 * envs for a, b in itertools.pairwise(steps))

            await until(lambda: batches_of(8), "batches of both env-servers")
            with watched(services.values(), tmp_path / "top.out") as shown:
                await until(lambda: "goal " in shown(), "a display")
                services["other"].kill()
                await until(lambda: NOTICE in services["replay"].text(), "its being said aloud")
                await until(lambda: NOTICE in shown(), "its being shown")
            await until(lambda: batches_of(4), "batches of the one that is left")
            with urllib.request.urlopen(f"{services['replay'].url()}/healthz", timeout=5) as answer:
                assert "env-1/0" in json.load(answer)["notice"]
