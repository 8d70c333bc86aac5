"""A simulator that hangs or crashes in a real job costs its own env-server's restart, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, by_hand, short_dir, until, write_config

BASE: dict[str, Any] = {
    "env": {"id": "faulty:make", "groups": 2, "envs": 4, "step_deadline_s": 2.0},
    "rollout": {"unroll": 32},
    "network": {"name": "mlp", "hidden": [16]},
    "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
    "stop": {"steps": 12_000},
}


@pytest.mark.parametrize(
    ("fault", "ending"),
    [
        ("sleeps", r"ended with exit code 70: .*a step of env-0/\d has not come back"),
        # Nothing but the timer, which needs no lock, can end this one.
        ("spins", r"ended with exit code 1: "),
        ("crashes", r"was killed by SIGSEGV"),
    ],
)
async def test_a_step_that_does_not_come_back_costs_a_restart_of_its_env_server(
    tmp_path: Path, fault: str, ending: str
) -> None:
    marker = tmp_path / "went-wrong"
    env = {**BASE["env"], "kwargs": {"fault": fault, "marker": str(marker)}}
    config = write_config(tmp_path / "config.yaml", {**BASE, "env": env})
    with Job(config, tmp_path / "run") as job:
        await until(marker.exists, "the fault")
        assert await job.ended() == 0, job.text()
    assert re.search(rf"env-0 \(pid \d+\) {ending}", job.text()), job.text()
    assert job.text().count("(pid ") == job.text().count("env-0 (pid "), "another service was lost too"
    assert job.result()["outcome"] == "steps"


async def test_a_hang_in_one_of_two_env_servers_leaves_the_other_alone(tmp_path: Path) -> None:
    marker = tmp_path / "went-wrong"
    env = {**BASE["env"], "servers": 2, "kwargs": {"fault": "sleeps", "marker": str(marker)}}
    # At lag 0 the job would wait for the env-server that is gone.
    endless = {"replay": {"max_policy_lag": 4}, "learner": {"batch": 2}, "stop": {"steps": 1_000_000_000}}
    config = write_config(tmp_path / "config.yaml", {**BASE, "env": env, **endless})
    with Job(config, tmp_path / "run") as job:

        def steps(index: int) -> float:
            return job.metric("env", "headrace_env_steps_total", index) or 0.0

        pids = [await until(lambda index=index: job.pid("env", index), "both") for index in (0, 1)]
        await until(marker.exists, "the fault")
        await until(lambda: "restarting in" in job.text(), "the end of the one that hangs")
        lost = re.findall(r"env-(\d) \(pid (\d+)\)", job.text())
        assert [(int(index), int(pid)) for index, pid in lost] in [[(0, pids[0])], [(1, pids[1])]], (lost, pids)
        faulty, other = (0, 1) if lost[0][0] == "0" else (1, 0)
        before = steps(other)
        assert before > 0
        await until(lambda: steps(other) > before, "steps of the other")
        await until(
            lambda: job.pid("env", faulty) not in (None, pids[faulty]) and steps(faulty), "steps of the new one"
        )
        assert job.pid("env", other) == pids[other]
        job.interrupt()
        assert await job.ended() == 0, job.text()
    assert job.text().count("(pid ") == 1, "another service was lost too"


async def test_a_service_told_to_stop_does_not_wait_for_ever_for_a_step_that_hangs(tmp_path: Path) -> None:
    marker = tmp_path / "went-wrong"
    # So slow that it steps on a thread: the loop is free, and hears of the stop.
    kwargs = {"fault": "sleeps", "marker": str(marker), "at": 20, "step_s": 0.01}
    with short_dir() as sockets:
        act, experience = [f"ipc://{sockets}/act"], [f"ipc://{sockets}/experience"]
        net = {"act": act, "experience": experience, "weights": f"ipc://{sockets}/weights"}
        tree = {**BASE, "env": {**BASE["env"], "groups": 1, "kwargs": kwargs}, "net": net}
        with by_hand(write_config(tmp_path / "config.yaml", tree), tmp_path / "run") as services:
            await until(marker.exists, "the fault")
            services["env"].process.terminate()
            assert await services["env"].ended() == 70
            assert "env-0: stopped" in services["env"].text()
