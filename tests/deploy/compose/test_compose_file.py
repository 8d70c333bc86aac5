"""docker-compose.yml and its overrides, as Compose understands them; nothing is started."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from containers import JOB, ROOT, compose, require

OVERRIDES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "deploy").glob("compose.*.yaml"))
ADDRESSES = {
    "ACT_ADDRESSES": "tcp://10.0.0.1:5701, tcp://10.0.0.2:5701",
    "EXPERIENCE_ADDRESS": "tcp://10.0.0.3:5702",
    "WEIGHTS_ADDRESS": "tcp://10.0.0.4:5703",
}


def services(*arguments: str, environ: dict[str, str] | None = None) -> dict[str, dict[str, object]]:
    return dict(json.loads(compose(*arguments, "config", "--format", "json", environ=environ))["services"])


def test_there_is_no_dependency_between_services() -> None:
    assert [name for name, service in services().items() if "depends_on" in service] == []


@pytest.mark.parametrize("override", OVERRIDES)
def test_override_keeps_every_service(override: str) -> None:
    found = services("-f", "docker-compose.yml", "-f", override, environ=ADDRESSES)
    assert set(found) >= {*JOB, "prometheus", "grafana"}


def test_gpu_override_gives_learner_and_inference_a_gpu() -> None:
    found = services("-f", "docker-compose.yml", "-f", "deploy/compose.gpu.yaml")
    with_gpu = {name for name, service in found.items() if '"capabilities": ["gpu"]' in json.dumps(service)}
    assert with_gpu == {"inference-server", "learner-server"}


def test_environment_chooses_config_settings_run_tag_and_ports() -> None:
    found = services(
        environ={
            "JOB_CONFIG": "configs/pendulum_ppo.yaml",
            "JOB_OVERRIDES": "learner.lr=3e-4 env.envs=4",
            "JOB_RUN": "second",
            "IMAGE_TAG": "mine",
            "GRAFANA_PORT": "3333",
        }
    )
    assert found["learner-server"]["command"] == [
        *("python", "-m", "services.learner_server", "--config", "configs/pendulum_ppo.yaml"),
        *("--run-dir", "runs/second", "learner.lr=3e-4", "env.envs=4"),
    ]
    assert found["replay-server"]["command"] == [
        *("python", "-m", "services.replay_server", "--config", "configs/pendulum_ppo.yaml"),
        *("--run-dir", "runs/second", "learner.lr=3e-4", "env.envs=4"),
    ]
    assert [found[name]["image"] for name in JOB] == [
        *("headrace-slim:mine", "headrace:mine", "headrace-slim:mine", "headrace:mine")
    ]
    assert '"published": "3333"' in json.dumps(found["grafana"]["ports"])


def test_compose_v1_takes_the_file() -> None:
    require("compose-v1", shutil.which("docker-compose") is not None)
    done = subprocess.run(["docker-compose", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
