"""The override that turns CURVE on: the same job, and no way in for a client without keys."""

from __future__ import annotations

import docker
import pytest
from containers import ENDLESS, stack
from jobs import until


@pytest.mark.usefixtures("images")
async def test_a_job_trains_encrypted_and_refuses_a_plain_client(engine: docker.DockerClient) -> None:
    with stack(engine, "headrace-curve", overrides=ENDLESS, file="deploy/compose.curve.yaml") as project:
        await project.trains()
        command = "python -m services.env_server --config configs/cartpole_ppo.yaml"
        stranger = project.engine.containers.run(
            "headrace-slim:latest",
            command,
            network=project.network().name,
            environment={
                "HEADRACE_NET__ACT": "[tcp://inference-server:5701]",
                "HEADRACE_NET__EXPERIENCE": "[tcp://replay-server:5702]",
                "HEADRACE_NET__SECURITY": "plain",
            },
            detach=True,
        )
        try:
            replay = project.container("replay-server")
            await until(lambda: b"refused a client" in replay.logs(), "the refusal")
            assert b"steps and" not in stranger.logs()
        finally:
            stranger.remove(force=True)
        await project.trains()
