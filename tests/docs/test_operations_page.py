"""docs/operations.md names what services export and say."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from common import metrics
from common.errors import ConfigError, Finished, HeadraceError, PeerLost
from common.service import Health
from services.control.engines.local import KILLED
from services.env_server.backends.watchdog import EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
LEARNER = (ROOT / "deploy" / "kubernetes" / "base" / "learner-server.yaml").read_text()


def exported() -> set[tuple[str, str]]:
    """Gives (name, type) of each metric of all roles."""
    registry = CollectorRegistry()
    metrics.ServiceMetrics("<role>", registry)
    for role in (metrics.EnvMetrics, metrics.InferenceMetrics, metrics.ReplayMetrics, metrics.LearnerMetrics):
        role(registry)
    families = list(registry.collect())
    return {(f"{family.name}_total" if family.type == "counter" else family.name, family.type) for family in families}


def test_the_metrics_on_the_page_are_exactly_those_exported() -> None:
    shown = re.findall(r"^\| `(headrace_[^`]+)` \| (\w+) \|", PAGE, re.MULTILINE)
    assert set(shown) == exported()
    assert len(shown) == len(set(shown))


def test_the_fields_of_healthz_are_on_the_page() -> None:
    table = PAGE.split("| /healthz field |", 1)[1].split("\n\n", 1)[0]
    shown = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    assert shown == {"role", "name", "pid", *Health().report()}


def test_the_exit_codes_are_on_the_page() -> None:
    table = PAGE.split("## Exit codes", 1)[1].split("## ", 1)[0]
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    errors = {error.exit_code for error in (HeadraceError, ConfigError, PeerLost, Finished)}
    on_kubernetes = {int(code) for code in re.findall(r"exit (\d+)$", LEARNER, re.MULTILINE)}
    assert shown == errors | {EXIT_CODE, KILLED} | on_kubernetes
