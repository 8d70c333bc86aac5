"""`env.affinity: auto` keeps each env-server process to one core of those it may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from jobs import Service, short_dir, until, write_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sched_setaffinity")
ALLOWED = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else [0]


@pytest.mark.parametrize(
    ("affinity", "index", "cores"),
    [
        ("none", 0, ALLOWED),
        ("auto", len(ALLOWED) - 1, ALLOWED[-1:]),
        # One more than there are cores begins with the first again.
        ("auto", len(ALLOWED), ALLOWED[:1]),
    ],
)
async def test_an_env_server_keeps_to_the_core_of_its_index(
    tmp_path: Path, affinity: str, index: int, cores: list[int]
) -> None:
    with short_dir() as folder:
        # Nobody is bound there: the env-server comes as far as missing them.
        net = {"experience": [f"ipc://{folder}/replay"], "act": [f"ipc://{folder}/act"], "deadline_s": 0.2}
        env = {"id": "headrace/Null-v0", "groups": 1, "envs": 1, "affinity": affinity}
        service = Service(
            "env", write_config(tmp_path / "config.yaml", {"env": env, "net": net}), tmp_path, index=index
        )
        try:
            await until(lambda: "no answer from" in service.text() or service.process.poll() is not None, "a wait")
            assert service.process.poll() is None, service.text()
            assert sorted(os.sched_getaffinity(service.process.pid)) == cores
        finally:
            service.kill()
