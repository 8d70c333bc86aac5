"""Prometheus's configuration, its rules, and an alert on its way."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
import yaml
from scraping import PROMETHEUS, ROOT, RULES, alertmanager, ask, prometheus, tool

from common.config import Config
from common.metrics import LearnerMetrics
from common.service import make_context, serve_http

ALERTS = [rule for rule in RULES if "alert" in rule]


def test_each_alert_names_its_paragraph_of_the_runbook() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text().split("\n## Runbook\n", 1)[1]
    described = re.findall(r"^### (\w+)$", runbook, re.MULTILINE)
    assert sorted(described) == sorted(rule["alert"] for rule in ALERTS)
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_each_alert_is_seen_firing_by_a_unit_test() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests" / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.deploy
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["check", "rules", "rules/recording.yml", "rules/alerts.yml"],
        ["test", "rules", "tests/recording_test.yml", "tests/alerts_test.yml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_accepts(arguments: list[str]) -> None:
    done = subprocess.run([tool("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.deploy
def test_amtool_accepts_the_example_of_alertmanager() -> None:
    path = PROMETHEUS / "alertmanager.yml"
    done = subprocess.run([tool("amtool"), "check-config", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def webhook() -> Iterator[tuple[str, Queue[dict[str, Any]]]]:
    """Gives the address of a webhook, and what is sent to it."""
    sent: Queue[dict[str, Any]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.deploy
async def test_an_alert_of_a_real_learner_reaches_a_webhook(tmp_path: Path) -> None:
    context = make_context(Config(), "learner")
    metrics = LearnerMetrics(context.registry)
    learner = serve_http(context)
    try:
        with webhook() as (url, sent), alertmanager(tmp_path, url) as place:
            targets = {"learner": [f"127.0.0.1:{learner.server_port}"]}
            with prometheus(tmp_path, targets, place) as server:
                skipped = "headrace_learner_skipped_updates_total"
                while not ask(server, "query", query=f"{skipped} == 0")["result"]:
                    await asyncio.sleep(0.1)
                metrics.skipped.inc()
                try:
                    alert = await asyncio.to_thread(sent.get, timeout=60)
                except Empty:
                    pytest.fail(str(ask(server, "alerts")))
    finally:
        learner.shutdown()
        learner.server_close()
    labels = alert["alerts"][0]["labels"]
    assert (alert["status"], labels["alertname"], labels["role"]) == ("firing", "HeadraceUpdatesSkipped", "learner")
    assert alert["alerts"][0]["annotations"]["runbook"] == "docs/operations.md#headraceupdatesskipped"
