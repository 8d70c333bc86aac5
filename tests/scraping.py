"""Prometheus and Alertmanager for tests, unprivileged and on the loopback, with the project's own rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import free_port

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = [
    rule
    for path in sorted((PROMETHEUS / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
READY_S = 30.0


def tool(*names: str) -> str:
    """Gives the path of a program that a test needs, under the first of `names` that there is.

    Without it the test fails, unless it is excused: DEPLOY_EXCUSED="NAME …".
    """
    for name in names:
        if path := shutil.which(name):
            return path
    if names[0] in os.environ.get("DEPLOY_EXCUSED", "").split():
        pytest.skip(f"excused: {names[0]}")
    pytest.fail(f"this machine has no {names[0]}; excuse it with DEPLOY_EXCUSED={names[0]}")


@contextmanager
def _running(argv: Sequence[str], log: Path, ready: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out)
    try:
        end = time.monotonic() + READY_S
        while not _answers(ready):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]], alertmanager: str = "") -> Iterator[str]:
    """Gives the address of a Prometheus that scrapes `targets` (role: host:port, …) each second, with our rules."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / "rules" / "*.yml")]
    config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]} if alertmanager else {}
    jobs = [{"targets": list(places), "labels": {"role": role}} for role, places in targets.items()]
    config["scrape_configs"] = [{"job_name": "headrace", "static_configs": jobs}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    place = f"127.0.0.1:{free_port()}"
    argv = [tool("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with _running([*argv, f"--web.listen-address={place}"], folder / "prometheus.log", f"http://{place}/-/ready"):
        yield f"http://{place}"


@contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """Gives the host:port of an Alertmanager with our example's routes, which sends to `webhook`."""
    config = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
    config["route"]["group_wait"] = "0s"
    config["receivers"][0]["webhook_configs"][0]["url"] = webhook
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    place = f"127.0.0.1:{free_port()}"
    argv = [tool("prometheus-alertmanager", "alertmanager"), f"--config.file={path}", "--cluster.listen-address="]
    argv += [f"--storage.path={folder / 'alerts'}", f"--web.listen-address={place}"]
    with _running(argv, folder / "alertmanager.log", f"http://{place}/-/ready"):
        yield place


def ask(server: str, path: str, **parameters: object) -> Any:
    """Gives the data of an answer of Prometheus's HTTP API."""
    url = f"{server}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())["data"]
