"""Four hosts, each with one role, over tcp with CURVE: a partition, loss and a narrow link leave the job training."""

from __future__ import annotations

import asyncio
import csv
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hosts import ADDRESSES, Host, hosts
from jobs import until, write_config

from services.control.keys import add_client, make_keys

pytestmark = pytest.mark.deploy

CUT_S = 4.0
WATCH_S = 4.0


class HostsJob:
    """An endless asynchronous CartPole job over four hosts."""

    def __init__(self, machines: dict[str, Host], folder: Path) -> None:
        self.hosts = machines
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        keys = folder / "keys"
        make_keys(keys)
        env_keys = add_client(keys, "env-host")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for role, host in machines.items():
            tree = job_config(str(env_keys if role == "env" else keys))
            self._processes[role] = host.start(write_config(folder / f"{role}.yaml", tree), self.run_dir)

    def steps(self) -> int:
        """Steps that the learner has heard of, by the last row of its progress.csv."""
        try:
            with (self.run_dir / "progress.csv").open() as file:
                return int([row["steps"] for row in csv.DictReader(file)][-1])
        except (OSError, IndexError, TypeError, ValueError):
            return 0

    async def rate(self) -> float:
        """Steps per second over a few seconds."""
        before, began = self.steps(), time.monotonic()
        await asyncio.sleep(WATCH_S)
        return (self.steps() - before) / (time.monotonic() - began)

    def alive(self) -> bool:
        return all(process.poll() is None for process in self._processes.values())

    def log(self, role: str) -> str:
        return (self.run_dir / f"{role}.log").read_text()

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(20)


def job_config(keys: str) -> dict[str, Any]:
    return {
        "env": {"id": "CartPole-v1", "groups": 2, "envs": 32},
        "rollout": {"unroll": 32},
        "replay": {"max_policy_lag": 100, "tables": {"experience": {"capacity": 8}}},
        "learner": {"batch": 2, "log_s": 0.1, "lr": 1e-3},
        "algorithm": {"name": "ppo", "epochs": 1, "minibatches": 1},
        "net": {
            "act": [f"tcp://{ADDRESSES['inference']}:5701"],
            "experience": [f"tcp://{ADDRESSES['replay']}:5702"],
            "weights": f"tcp://{ADDRESSES['learner']}:5703",
            "keys": keys,
            "resend_s": 0.5,
            "deadline_s": 2.0,
        },
    }


@pytest.fixture
def job(tmp_path: Path) -> Iterator[HostsJob]:
    with hosts() as machines:
        job = HostsJob(machines, tmp_path)
        try:
            yield job
        finally:
            job.close()


def report(capsys: pytest.CaptureFixture[str], what: str, rate: float, base: float) -> None:
    with capsys.disabled():
        print(f"\n| {what} | {rate:,.0f} | {rate / base:.0%} |", end="")


async def test_every_role_on_a_host_of_its_own_trains_through_partition_loss_and_narrow_links(
    job: HostsJob, capsys: pytest.CaptureFixture[str]
) -> None:
    await until(lambda: job.steps() > 20_000, "the job to train")
    base = await job.rate()
    report(capsys, "no fault", base, base)
    for role, host in job.hosts.items():
        with host.cut_off():
            await asyncio.sleep(CUT_S)
            during = await job.rate()
        healed, steps = time.monotonic(), job.steps()
        await until(lambda seen=steps: job.steps() > seen + 10_000, f"training after {role} was cut off")
        report(
            capsys,
            f"{role} cut off for {CUT_S + WATCH_S:.0f} s, back in {time.monotonic() - healed:.1f} s",
            during,
            base,
        )
        assert job.alive()
    faults: dict[str, list[AbstractContextManager[None]]] = {
        "1 % loss on every host": [host.lossy(0.01) for host in job.hosts.values()],
        "10 Mbit/s from the env host": [job.hosts["env"].narrow("10mbit"), nullcontext()],
    }
    for what, contexts in faults.items():
        for context in contexts:
            context.__enter__()
        try:
            steps = job.steps()
            await until(lambda seen=steps: job.steps() > seen + 5_000, f"training with {what}")
            report(capsys, what, await job.rate(), base)
        finally:
            for context in reversed(contexts):
                context.__exit__(None, None, None)
    assert job.alive()
    assert "no answer from the" in job.log("env") + job.log("inference") + job.log("learner")
