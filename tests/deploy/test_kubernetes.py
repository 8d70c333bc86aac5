"""The Kubernetes manifests: valid, and in agreement with the images, the settings, the rules and one another."""

from __future__ import annotations

import asyncio
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from scraping import PROMETHEUS, ROOT, tool

from common.arguments import service_arguments
from common.config import Config

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = (".", "overlays/plain", "overlays/gpu", "overlays/curve")
VERSIONS = ("1.32", "1.37")
# Kinds of Prometheus Operator, for which there is no schema here.
OTHERS = {"ServiceMonitor", "PrometheusRule"}
ROLES = {"env-server": "env", "inference-server": "inference", "replay-server": "replay", "learner-server": "learner"}

pytestmark = pytest.mark.deploy


@cache
def render(overlay: str) -> tuple[dict[str, Any], ...]:
    """Gives the objects that `kubectl apply -k` would send."""
    done = subprocess.run([tool("kubectl"), "kustomize", KUBERNETES / overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def workloads(overlay: str) -> dict[str, dict[str, Any]]:
    """Gives each workload's pod template by the workload's name."""
    return {
        item["metadata"]["name"]: item["spec"]["template"]
        for item in render(overlay)
        if item["kind"] in ("Deployment", "StatefulSet", "Job")
    }


def container(overlay: str, name: str) -> dict[str, Any]:
    (found,) = workloads(overlay)[name]["spec"]["containers"]
    return dict(found)


def named(overlay: str, kind: str, name: str) -> dict[str, Any]:
    (found,) = [item for item in render(overlay) if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def environment(overlay: str, name: str) -> dict[str, str]:
    """Gives a container's variables; a value that the cluster fills in is 0."""
    own = {item["name"]: item.get("value", "0") for item in container(overlay, name).get("env", [])}
    return {**named(overlay, "ConfigMap", "headrace-job")["data"], **own}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_follow_the_schemas_strictly(overlay: str, version: str) -> None:
    checked = 0
    for item in render(overlay):
        if item["kind"] not in OTHERS:
            kubernetes_validate.validate(item, version, strict=True)
            checked += 1
    assert checked >= 15


def test_the_schemas_refuse_a_key_that_is_not_there() -> None:
    item = {**named(".", "Deployment", "env-server")}
    item["spec"] = {**item["spec"], "replica": 2}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, VERSIONS[0], strict=True)


def arguments(overlay: str, name: str, folder: Path) -> list[str]:
    """Gives what a container's command runs after `python -m`."""
    spec, variables = container(overlay, name), environment(overlay, name)
    if spec["command"] == ["sh", "-c"]:
        return run_learner(spec["args"][0], folder, 'echo "$@" > called; exit 2', variables)[1]
    command, *rest = spec["command"], *spec["args"]
    assert command[:2] == ["python", "-m"]
    return [*command[2:], *(re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], word) for word in rest)]


def run_learner(script: str, folder: Path, python: str, variables: dict[str, str]) -> tuple[int, list[str]]:
    """Runs the learner's shell script with a stand-in for python; gives its exit code and python's arguments."""
    (folder / "runs" / variables["JOB_RUN"]).mkdir(parents=True, exist_ok=True)
    stand_in = folder / "python"
    stand_in.write_text(f"#!/bin/sh\n{python}\n")
    stand_in.chmod(0o755)
    environ = {"PATH": f"{folder}:/usr/bin:/bin", **variables}
    done = subprocess.run(["sh", "-c", script], cwd=folder, env=environ, timeout=20)
    called = folder / "called"
    return done.returncode, called.read_text().split()[1:] if called.exists() else []


def loaded(role: str, words: list[str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Config:
    """Gives the config that a service would have, in the working directory of the image."""
    monkeypatch.chdir(ROOT)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    return service_arguments(role, words).config


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ROLES)
def test_a_command_is_one_that_the_image_has(
    overlay: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *words = arguments(overlay, name, tmp_path)
    assert module == f"services.{ROLES[name]}_server"
    config = loaded(ROLES[name], words, environment(overlay, name), monkeypatch)
    assert config.stop.episode_return == 475
    image = "headrace-slim" if ROLES[name] in ("env", "replay") else "headrace"
    assert container(overlay, name)["image"] == f"{image}:latest"


@pytest.mark.parametrize("name", ROLES)
def test_a_command_of_compose_is_one_that_the_image_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (line for line in (ROOT / ".env").read_text().splitlines() if line and line[0] != "#")
    settings = dict(line.split("=", 1) for line in lines)
    text = re.sub(r"\$\{(\w+)\}", lambda m: settings[m[1]], (ROOT / "docker-compose.yml").read_text())
    service = yaml.safe_load(text)["services"][name]
    python, option, module, *words = service["command"].split()
    assert (python, option, module) == ("python", "-m", f"services.{ROLES[name]}_server")
    assert loaded(ROLES[name], words, service["environment"], monkeypatch).stop.episode_return == 475
    image = "headrace-slim" if ROLES[name] in ("env", "replay") else "headrace"
    assert service["image"] == f"{image}:latest"
    assert f" AS {image}\n" in (ROOT / "deploy" / "docker" / "Dockerfile").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["replay-server", "learner-server"])
def test_checkpoints_go_to_a_claim_that_outlives_the_pod(
    overlay: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run_dir = service_arguments(ROLES[name], arguments(overlay, name, tmp_path)[1:]).run_dir
    assert run_dir == Path("runs") / environment(overlay, name)["JOB_RUN"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container(overlay, name)["volumeMounts"]}
    claims = [
        volume["name"] for volume in workloads(overlay)[name]["spec"]["volumes"] if "persistentVolumeClaim" in volume
    ]
    if name == "replay-server":
        claims += [c["metadata"]["name"] for c in named(overlay, "StatefulSet", name)["spec"]["volumeClaimTemplates"]]
    assert mounts["/opt/headrace/runs"] in claims


@pytest.mark.parametrize("name", ["replay-server", "learner-server"])
def test_checkpoints_of_compose_go_to_the_volume_of_runs(name: str) -> None:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]
    assert "--run-dir runs/${JOB_RUN} " in service["command"]
    assert service["volumes"] == ["./configs:/opt/headrace/configs:ro", "runs:/opt/headrace/runs"]


@pytest.mark.parametrize("name", ROLES)
def test_liveness_and_readiness_are_told_apart(name: str) -> None:
    spec = container(".", name)
    metrics = {"name": "metrics", "containerPort": 9400}
    assert metrics in spec["ports"]
    probes = {kind: spec[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {
        "startupProbe": {"path": "/healthz", "port": "metrics"},
        "livenessProbe": {"path": "/healthz", "port": "metrics"},
        "readinessProbe": {"path": "/readyz", "port": "metrics"},
    }


@pytest.mark.parametrize("name", ROLES)
def test_services_and_budgets_select_the_pods_of_one_role(name: str) -> None:
    service, budget = named(".", "Service", name), named(".", "PodDisruptionBudget", name)
    assert service["spec"]["clusterIP"] == "None"
    selected = {
        kind: [n for n, pod in workloads(".").items() if labels.items() <= pod["metadata"]["labels"].items()]
        for kind, labels in (
            ("service", service["spec"]["selector"]),
            ("budget", budget["spec"]["selector"]["matchLabels"]),
        )
    }
    assert selected == {"service": [name], "budget": [name]}
    assert service["metadata"]["labels"]["app.kubernetes.io/component"] == ROLES[name]
    offered = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert offered == {port["name"]: port["containerPort"] for port in container(".", name)["ports"]}


def test_clients_look_for_servers_where_they_listen() -> None:
    sought = named(".", "ConfigMap", "headrace-job")["data"]
    for setting, name in (("ACT", "inference-server"), ("EXPERIENCE", "replay-server"), ("WEIGHTS", "learner-server")):
        there = urlsplit(sought[f"HEADRACE_NET__{setting}"].strip("[]"))
        here = urlsplit(environment(".", name)[f"HEADRACE_NET__{setting}"].strip("[]"))
        assert (here.hostname, here.port) == ("0.0.0.0", there.port)
        assert str(there.hostname).split(".")[-1] == name
        assert there.port in [port["port"] for port in named(".", "Service", name)["spec"]["ports"]]


@pytest.mark.parametrize(
    ("python", "code"),
    [
        ("""echo '{"outcome": "solved"}' > runs/cartpole/result.json""", 0),
        ("""echo '{"outcome": "stopped"}' > runs/cartpole/result.json""", 75),
        ("true", 75),
        ("exit 2", 2),
        ("kill -9 $$", 137),
    ],
    ids=["solved", "stopped", "stopped before it began", "wrong setting", "killed"],
)
def test_only_a_learner_that_is_done_completes_its_job(tmp_path: Path, python: str, code: int) -> None:
    script = container(".", "learner-server")["args"][0]
    assert run_learner(script, tmp_path, python, environment(".", "learner-server"))[0] == code


async def test_a_learner_is_told_to_stop_and_waited_for(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(
        """#!/bin/sh
        trap 'sleep 0.2; echo saved > saved; exit 0' TERM
        touch ready
        while :; do sleep 0.05; done
        """
    )
    (tmp_path / "python").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_CONFIG": "x", "JOB_RUN": "x"}
    script = container(".", "learner-server")["args"][0]
    shell = await asyncio.create_subprocess_exec("sh", "-c", script, cwd=tmp_path, env=environ)
    async with asyncio.timeout(20):
        while not (tmp_path / "ready").exists():
            await asyncio.sleep(0.02)
        shell.terminate()
        assert await shell.wait() == 75
    assert (tmp_path / "saved").exists()


def test_the_rules_for_the_operator_are_prometheus_own() -> None:
    groups = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((PROMETHEUS / "rules" / name).read_text())["groups"]
    ]
    assert named(".", "PrometheusRule", "headrace")["spec"]["groups"] == groups, "copy deploy/prometheus/rules"


def test_the_autoscaler_asks_for_what_the_adapter_serves() -> None:
    (metric,) = named(".", "HorizontalPodAutoscaler", "env-server")["spec"]["metrics"]
    values = yaml.safe_load((KUBERNETES / "components" / "monitoring" / "adapter-values.yaml").read_text())
    (rule,) = values["rules"]["external"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    recorded = yaml.safe_load((PROMETHEUS / "rules" / "recording.yml").read_text())["groups"][0]["rules"]
    assert rule["seriesQuery"].partition("{")[0] in {item["record"] for item in recorded}
    assert "replicas" not in named(".", "Deployment", "env-server")["spec"]


def keys_seen(name: str) -> set[str]:
    """Gives the files of the Secret that a workload's pods see; empty if all."""
    volumes = workloads("overlays/curve")[name]["spec"]["volumes"]
    (secret,) = [volume["secret"] for volume in volumes if "secret" in volume]
    assert secret["secretName"] == "headrace-keys"
    return {item["path"] for item in secret.get("items", [])}


def test_keys_are_a_secret_of_which_clients_see_their_part() -> None:
    assert "Secret" not in {item["kind"] for overlay in OVERLAYS for item in render(overlay)}
    assert {name: keys_seen(name) for name in ROLES} == {
        "env-server": {"server.pub", "client.key"},
        "inference-server": set(),
        "replay-server": set(),
        "learner-server": set(),
    }
    for name in ROLES:
        (mount,) = [m for m in container("overlays/curve", name)["volumeMounts"] if m["name"] == "keys"]
        assert mount["mountPath"] == environment("overlays/curve", name)["HEADRACE_NET__KEYS"]
