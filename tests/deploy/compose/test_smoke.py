"""The short proof for every change: images, compose to healthy, some thousand steps, down."""

from __future__ import annotations

import docker
import pytest
from containers import ENDLESS, JOB, stack
from jobs import until


@pytest.mark.usefixtures("images")
async def test_containers_become_healthy_and_train_and_leave_nothing(engine: docker.DockerClient) -> None:
    with stack(engine, "headrace-smoke", (*JOB, "prometheus"), ENDLESS) as project:
        await project.healthy()
        await until(lambda: project.steps() > 5000, "5,000 steps")
        await until(
            lambda: (
                {r["metric"]["role"] for r in project.query("up == 1")} >= {"env", "inference", "replay", "learner"}
            ),
            "Prometheus sees every role",
        )
    label = {"label": "com.docker.compose.project=headrace-smoke"}
    assert engine.containers.list(all=True, filters=label) == []
    assert engine.networks.list(filters=label) == []
    assert engine.volumes.list(filters=label) == []
