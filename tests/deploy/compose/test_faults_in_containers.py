"""One job in containers that is scaled, stopped, killed and cut off while it trains."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address

import docker
import pytest
import pytest_asyncio
from containers import ENDLESS, JOB, RUN, Stack, stack, state
from jobs import until

ROLES = {"env": "env-server", "inference": "inference-server", "replay": "replay-server", "learner": "learner-server"}


@pytest.fixture(scope="module")
def project(engine: docker.DockerClient, images: object) -> Iterator[Stack]:
    with stack(engine, "headrace-faults", (*JOB, "prometheus"), ENDLESS) as made:
        yield made


@pytest_asyncio.fixture
async def job(project: Stack) -> AsyncIterator[Stack]:
    """The job, training, with one container of each role."""
    await project.trains()
    yield project
    if len(project.containers("env-server")) > 1:
        project.up(JOB, "--scale", "env-server=1")


async def test_every_container_is_healthy_and_confined(job: Stack) -> None:
    await job.healthy()
    for service in JOB:
        host = job.container(service).attrs["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["RestartPolicy"]["Name"] == "on-failure"
        assert host["ShmSize"] == 64 * 2**20
        assert host["Memory"] > 0
        assert host["NanoCpus"] > 0
        assert host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}


def up(job: Stack) -> dict[str, int]:
    """How many processes of each role Prometheus reaches now."""
    return {r["metric"]["role"]: int(r["value"][1]) for r in job.query("count by (role) (up == 1)")}


async def test_env_servers_scale_from_1_to_4_to_2_while_it_trains(job: Stack) -> None:
    one_of_each = dict.fromkeys(ROLES, 1)
    job.up(JOB, "--scale", "env-server=4")
    for container in job.containers("env-server"):
        await until(lambda c=container: job.metric(c, "headrace_env_steps_total") > 0, f"steps of {container.name}")
    await until(lambda: up(job) == one_of_each | {"env": 4}, "Prometheus scrapes four env-servers")
    since = int(time.time())
    job.up(JOB, "--scale", "env-server=2")
    ended = job.engine.events(
        since=since,
        until=int(time.time()) + 1,
        filters={"event": "die", "label": f"com.docker.compose.project={job.project}"},
        decode=True,
    )
    assert [event["Actor"]["Attributes"]["exitCode"] for event in ended] == ["0", "0"]
    await job.trains()
    for container in job.containers("env-server"):
        before = job.metric(container, "headrace_env_steps_total")
        await until(lambda c=container, b=before: job.metric(c, "headrace_env_steps_total") > b, "both go on")
    await until(lambda: up(job) == one_of_each | {"env": 2}, "Prometheus scrapes two env-servers")


@pytest.mark.parametrize("service", JOB)
async def test_killed_process_is_started_again_and_training_goes_on(job: Stack, service: str) -> None:
    container = job.container(service)
    restarts = state(container)[2]
    os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)
    await until(lambda: state(container)[2] == restarts + 1 and state(container)[0] == "running", "it runs again")
    await job.trains()


@pytest.mark.parametrize("service", JOB)
async def test_docker_kill_stops_a_service_and_docker_start_brings_it_back(job: Stack, service: str) -> None:
    container = job.container(service)
    container.kill()
    await until(lambda: state(container)[:2] == ("exited", 137), "it is killed")
    container.start()
    await job.trains()


@pytest.mark.parametrize("service", JOB)
async def test_stop_lets_a_service_end_in_order_within_the_grace_period(job: Stack, service: str) -> None:
    container = job.container(service)
    job.compose("stop", service)
    assert state(container)[:2] == ("exited", 0)
    container.start()
    await job.trains()


async def test_stopped_learner_goes_on_from_its_checkpoint(job: Stack) -> None:
    container = job.container("learner-server")
    job.compose("stop", "learner-server")
    checkpoint = job.read(f"{RUN}/checkpoints/latest").strip()
    container.start()
    await job.trains()
    assert f"resumes after update {int(checkpoint)}," in container.logs().decode()


@pytest.mark.parametrize("service", JOB)
async def test_partition_of_a_role_heals(job: Stack, service: str) -> None:
    container, network = job.container(service), job.network()
    restarts = [state(c)[2] for c in job.containers()]
    network.disconnect(container)
    # Longer than net.deadline_s: every side has said that it hears nothing.
    await asyncio.sleep(12)
    network.connect(container, aliases=[service])
    await job.trains()
    assert [state(c)[2] for c in job.containers()] == restarts, "it healed without a restart"


async def test_roles_that_come_back_under_other_addresses_are_found(job: Stack) -> None:
    network = job.network()
    before = {service: job.address(job.container(service)) for service in ("replay-server", "inference-server")}
    low, high = sorted(before, key=lambda service: ip_address(before[service]))
    for service in before:
        network.disconnect(job.container(service))
    # The engine gives the lowest address that is free: so the two change places.
    for service in (high, low):
        network.connect(job.container(service), aliases=[service])
    assert {service: job.address(job.container(service)) for service in (high, low)} == {
        high: before[low],
        low: before[high],
    }
    await job.trains()
