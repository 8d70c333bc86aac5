"""A job in containers from the first step to the last: it reaches its goal, and its containers end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import docker
import pytest
from containers import RUN, Stack, require, stack, state
from jobs import until


@pytest.fixture(scope="module")
def solved(engine: docker.DockerClient, images: object) -> Iterator[Stack]:
    """CartPole as .env has it: the default job."""
    with stack(engine, "headrace-goal") as project:
        yield project


async def test_cartpole_trains_to_475_and_every_container_exits_0(solved: Stack) -> None:
    await solved.ends()
    assert [state(container) for container in solved.containers()] == [("exited", 0, 0)] * 4
    result = json.loads(solved.read(f"{RUN}/result.json"))
    assert result["outcome"] == "solved"
    assert result["episode_return"] >= 475


async def test_a_finished_job_brought_up_again_ends_at_once_and_trains_no_more(solved: Stack) -> None:
    await solved.ends()
    updates = json.loads(solved.read(f"{RUN}/result.json"))["updates"]
    solved.up()
    await solved.ends()
    assert [state(container)[1] for container in solved.containers()] == [0] * 4
    assert json.loads(solved.read(f"{RUN}/result.json"))["updates"] == updates


async def test_grafana_opens_on_the_overview_without_a_login(engine: docker.DockerClient, images: object) -> None:
    image = Stack(engine, "headrace-grafana").compose("config", "--images", "grafana").strip()
    require("grafana", bool(engine.images.list(image)))
    with stack(engine, "headrace-grafana", ("grafana", "prometheus")) as project:
        url = f"http://{project.environ['GRAFANA_PORT']}"
        home = await until(lambda: _json(f"{url}/api/dashboards/home"), "Grafana answers")
        assert "overview" in home["dashboard"]["title"].lower()


def _json(url: str) -> dict[str, dict[str, str]] | None:
    from containers import fetch

    text = fetch(url)
    return None if text is None else json.loads(text)
