"""Each role in a compose project and network of its own, joined by published ports alone, as on several hosts."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import docker
import pytest
from containers import ENDLESS, JOB, ROOT, fetch, stack
from jobs import until


def own_address() -> str:
    """An address of this machine that its containers reach too; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@pytest.mark.usefixtures("images")
async def test_roles_on_hosts_of_their_own_train_together(
    engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = own_address()
    monkeypatch.setenv("COMPOSE_FILE", f"{ROOT}/docker-compose.yml:{ROOT}/deploy/compose.hosts.yaml")
    monkeypatch.setenv("ACT_ADDRESSES", f"tcp://{host}:5701")
    monkeypatch.setenv("EXPERIENCE_ADDRESS", f"tcp://{host}:5702")
    monkeypatch.setenv("WEIGHTS_ADDRESS", f"tcp://{host}:5703")
    with ExitStack() as hosts:
        on = {role: hosts.enter_context(stack(engine, f"headrace-{role}", (role,), ENDLESS)) for role in JOB}
        await on["learner-server"].trains()
        env = on["env-server"]
        env.up(("env-server",), "--scale", "env-server=2")
        for container in env.containers():
            await until(lambda c=container: env.metric(c, "headrace_env_steps_total") > 0, f"steps of {container.name}")
        assert "headrace_learner_env_steps" in (fetch(f"http://{host}:9403/metrics") or "")
