"""The four services by hand over tcp, in any order: each is up before the next is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import ROLES, Service, by_hand, free_port, until, write_config

# Of the 24 orders eight, in which every role comes first, last and between, and before each other role and after it.
ORDERS = [way[n:] + way[:n] for way in (ROLES, ROLES[::-1]) for n in range(len(ROLES))]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
async def test_a_job_starts_in_any_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    act, experience, weights = (f"tcp://127.0.0.1:{free_port()}" for _ in range(3))
    tree = {
        "env": {"id": "CartPole-v1", "groups": 2, "envs": 4},
        "rollout": {"unroll": 16},
        "algorithm": {"name": "a2c"},
        "stop": {"steps": 500},
        "net": {"act": [act], "experience": [experience], "weights": weights},
    }
    config = write_config(tmp_path / "config.yaml", tree)
    with by_hand(config, tmp_path / "run", roles=()) as services:
        for role in order:
            service = services[role] = Service(role, config, tmp_path / "run")
            await until(service.url, f"{role}'s being up")
        for service in services.values():
            assert await service.ended() == 0, service.text()
        assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] >= 500
