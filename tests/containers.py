"""Real jobs in containers for tests: a compose project of its own, watched and disturbed through the docker SDK."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container
from docker.models.networks import Network
from jobs import free_port, until

ROOT = Path(__file__).resolve().parent.parent
JOB = ("env-server", "inference-server", "replay-server", "learner-server")
RUN = "runs/test"
# Goes on until it is stopped, and loses little when its learner dies.
ENDLESS = "stop.episode_return=null stop.steps=1000000000 learner.checkpoint.interval_s=1"


def require(name: str, here: bool) -> None:
    """Fails where the machine lacks what a test needs, unless the test is excused: DEPLOY_EXCUSED="NAME …"."""
    if not here and name in os.environ.get("DEPLOY_EXCUSED", "").split():
        pytest.skip(f"excused: {name}")
    assert here, f"this machine has no {name}; excuse it with DEPLOY_EXCUSED={name}"


def compose(*arguments: str, environ: dict[str, str] | None = None) -> str:
    """Runs `docker compose …` in the repository and gives its output."""
    done = subprocess.run(
        ["docker", "compose", *arguments], cwd=ROOT, env={**os.environ, **(environ or {})}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def fetch(url: str) -> str | None:
    """What `url` answers; None if it does not."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


class Stack:
    """One compose project."""

    def __init__(self, engine: docker.DockerClient, project: str, overrides: str = "", file: str = "") -> None:
        self.engine = engine
        self.project = project
        self.prometheus_port = free_port()
        self.environ = {
            "COMPOSE_PROJECT_NAME": project,
            "JOB_RUN": Path(RUN).name,
            "JOB_OVERRIDES": overrides,
            "PROMETHEUS_PORT": f"127.0.0.1:{self.prometheus_port}",
            "GRAFANA_PORT": f"127.0.0.1:{free_port()}",
        }
        if file:
            self.environ["COMPOSE_FILE"] = f"docker-compose.yml:{file}"

    def compose(self, *arguments: str) -> str:
        return compose(*arguments, environ=self.environ)

    def up(self, services: Sequence[str] = JOB, *options: str) -> None:
        self.compose("up", "--detach", "--no-build", *options, *services)

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "0")

    def containers(self, service: str | None = None) -> list[Container]:
        """The containers of the project, or of one of its services, by name, ended ones too."""
        labels = [f"com.docker.compose.project={self.project}"]
        if service is not None:
            labels.append(f"com.docker.compose.service={service}")
        found = self.engine.containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda container: str(container.name))

    def container(self, service: str) -> Container:
        """The one container of a service."""
        (found,) = self.containers(service)
        return found

    def network(self) -> Network:
        (found,) = self.engine.networks.list(filters={"label": f"com.docker.compose.project={self.project}"})
        return found

    def address(self, container: Container) -> str:
        container.reload()
        networks = container.attrs["NetworkSettings"]["Networks"]
        return str(networks[self.network().name]["IPAddress"]) if networks else ""

    def metric(self, container: Container, name: str) -> float:
        """The value of a metric without labels; 0 while the container does not answer."""
        address = self.address(container)
        text = fetch(f"http://{address}:9400/metrics") if address else None
        found = re.search(rf"^{name} (\S+)$", text or "", re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def steps(self) -> float:
        """Steps that the learner has counted."""
        return self.metric(self.container("learner-server"), "headrace_learner_env_steps")

    def updates(self) -> float:
        """Updates that the learner's present life has done: it counts from 0, whatever it resumes from."""
        return self.metric(self.container("learner-server"), "headrace_learner_updates_total")

    async def trains(self) -> None:
        """Returns when the learner has gone on by several updates from now; fails after the deadline."""
        before = self.updates()

        def has_moved() -> bool:
            now = self.updates()
            return now >= before + 5 or 5 <= now < before

        await self._until(has_moved, "five more updates")

    async def ends(self) -> None:
        """Returns when every container has exited."""
        await self._until(lambda: all(state(c)[0] == "exited" for c in self.containers()), "the job's end")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            await until(condition, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    async def healthy(self, services: Sequence[str] = JOB) -> None:
        for service in services:
            for container in self.containers(service):
                await until(lambda c=container: health(c) == "healthy", f"{container.name} is healthy")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus, on its published port, answers now; nothing while it does not."""
        query = urllib.parse.urlencode({"query": expression})
        answer = fetch(f"http://127.0.0.1:{self.prometheus_port}/api/v1/query?{query}")
        return [] if answer is None else list(json.loads(answer)["data"]["result"])

    def read(self, path: str) -> str:
        """A file of the learner's volume, also when the learner has ended."""
        stream, _ = self.container("learner-server").get_archive(f"/opt/headrace/{path}")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            member = archive.extractfile(archive.getmembers()[0])
            assert member is not None
            return member.read().decode()

    def logs(self, lines: int = 15) -> str:
        return "\n".join(f"--- {c.name}\n{c.logs(tail=lines).decode()}" for c in self.containers())


def health(container: Container) -> str:
    container.reload()
    return str(container.attrs["State"]["Health"]["Status"])


def state(container: Container) -> tuple[str, int, int]:
    """(status, exit code, times the engine restarted it)."""
    container.reload()
    attributes = container.attrs
    return attributes["State"]["Status"], attributes["State"]["ExitCode"], attributes["RestartCount"]


@contextmanager
def stack(
    engine: docker.DockerClient,
    project: str,
    services: Sequence[str] = JOB,
    overrides: str = "",
    file: str = "",
) -> Iterator[Stack]:
    """Brings a project up, with an override `file`; whatever is left of it at the end, volumes too, is removed."""
    made = Stack(engine, project, overrides, file)
    made.down()
    try:
        made.up(services)
        yield made
    finally:
        made.down()
