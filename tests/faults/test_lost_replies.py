"""The first reply of every kind is lost, on every connection of a job: all is asked again, and applied once."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from jobs import by_hand, short_dir, stream_lines, write_config
from proxies import Proxy

UNROLL, ENVS, STEPS = 16, 4, 4_000
BASE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "vectorized": False, "groups": 2, "envs": ENVS},
    "rollout": {"unroll": UNROLL},
    "network": {"name": "mlp", "hidden": [32]},
    "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
    "stop": {"steps": STEPS},
}
MODES: dict[str, dict[str, Any]] = {
    "lag0": {},
    "async": {
        "replay": {"max_policy_lag": 10, "tables": {"experience": {"kind": "fifo", "capacity": 4}}},
        "learner": {"batch": 2},
    },
}
LOST = {
    "act": {"Welcome", "Actions"},
    "experience": {"Welcome", "Inserted", "Batch", "Finished"},
    "weights": {"Welcome", "Weights"},
}


@pytest.mark.parametrize("mode", MODES)
async def test_a_job_that_loses_the_first_reply_of_each_kind_ends_with_true_counters(tmp_path: Path, mode: str) -> None:
    with short_dir() as sockets, ExitStack() as stack:
        real = {name: f"ipc://{sockets}/{name}" for name in LOST}
        seen = {name: f"ipc://{sockets}/{name}-proxy" for name in LOST}
        proxies = {name: stack.enter_context(Proxy(seen[name], real[name])) for name in LOST}
        for proxy in proxies.values():
            proxy.drop_first_of_each()
        net = {"act": [seen["act"]], "experience": [seen["experience"]], "weights": seen["weights"]}
        net |= {"resend_s": 0.3, "linger_s": 1.0}
        config = write_config(tmp_path / "config.yaml", {**BASE, **MODES[mode], "net": net})
        binds = {
            "inference": [f"net.act=[{real['act']}]"],
            "replay": [f"net.experience=[{real['experience']}]"],
            "learner": [f"net.weights={real['weights']}"],
        }
        services = stack.enter_context(by_hand(config, tmp_path / "run", overrides=binds))
        for service in services.values():
            assert await service.ended() == 0, service.text()
        for name, kinds in LOST.items():
            assert set(proxies[name].dropped) >= kinds
            assert set(proxies[name].dropped.values()) == {1}
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        streams = {int(life): tuple(totals) for life, totals in result["streams"].items()}
        assert streams == stream_lines(services["env"].log)
        assert result["steps"] == sum(steps for _, steps, _ in streams.values())
        if mode == "lag0":
            # Nothing was stale, so every unroll that was inserted was trained on, once.
            assert result["trained_steps"] == result["steps"] == 2 * result["updates"] * UNROLL * ENVS
        else:
            assert 0 < result["trained_steps"] <= result["steps"]
