"""The dashboards: made by their script, understood by Grafana and Prometheus, and filled by a real job."""

from __future__ import annotations

import asyncio
import json
import math
import re
import runpy
import subprocess
import time
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from jobs import Job, until
from prometheus_client import CollectorRegistry
from scraping import ROOT, RULES, ask, prometheus, tool

from common import metrics

GRAFANA = ROOT / "deploy" / "grafana"
PAGES = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
EXPRESSIONS = {
    f"{name}: {panel['title']}: {target['refId']}": target["expr"].replace("$__rate_interval", "20s")
    for name, page in PAGES.items()
    for panel in page["panels"]
    for target in panel["targets"]
}
# What Grafana 11.6 says a dashboard is, from its own types.
SCHEMA = ["@grafana/schema@11.6.16", "ts-json-schema-generator@2.4.0", "ajv@8.17.1"]
TYPES = """
import type { Dashboard } from './node_modules/@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen';
export type Page = Dashboard;
"""
CHECK = """
const fs = require('fs'), Ajv = require('ajv');
const valid = new Ajv({strict: false, allErrors: true}).compile(JSON.parse(fs.readFileSync('schema.json')));
for (const file of process.argv.slice(2))
  if (!valid(JSON.parse(fs.readFileSync(file)))) console.log(file, JSON.stringify(valid.errors, null, 1));
"""


def known() -> set[str]:
    """Gives every name that a query may use: what services export, as samples, and what rules record."""
    registry = CollectorRegistry()
    for role in ("env", "inference", "replay", "learner"):
        metrics.ServiceMetrics(role, registry)
    for model in (metrics.EnvMetrics, metrics.InferenceMetrics, metrics.ReplayMetrics, metrics.LearnerMetrics):
        model(registry)
    names = {rule["record"] for rule in RULES if "record" in rule}
    for family in registry.collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    return names


def test_the_dashboards_are_those_that_the_script_makes() -> None:
    script = runpy.run_path(str(GRAFANA / "make_dashboards.py"))
    assert set(script["PAGES"]) == set(PAGES)
    for name in PAGES:
        made = script["page"](name)
        assert (GRAFANA / "dashboards" / f"{name}.json").read_text() == made, "run deploy/grafana/make_dashboards.py"


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_an_expression_is_promql_over_metrics_that_exist(expression: str) -> None:
    promql_parser.parse(expression)
    used = re.findall(r"(?:\w+:)?headrace_\w+(?::\w+)?", expression)
    assert set(used) <= known()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_uses_metrics_that_exist(rule: dict[str, Any]) -> None:
    promql_parser.parse(rule["expr"])
    used = re.findall(r"(?<!\")(?:\w+:)?headrace_\w+(?::\w+)?", rule["expr"])
    assert set(used) <= known()


def test_the_provisioned_source_is_the_one_that_panels_ask() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    asked = {panel["datasource"]["uid"] for page in PAGES.values() for panel in page["panels"]}
    assert asked == {source["uid"]}


def test_grafana_in_compose_opens_on_the_overview() -> None:
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    folder = next(mount.split(":")[1] for mount in grafana["volumes"] if mount.startswith("./deploy/grafana:"))
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "headrace.yml").read_text())["providers"][0]
    assert provider["options"]["path"] == f"{folder}/dashboards"
    environment = grafana["environment"]
    assert environment["GF_PATHS_PROVISIONING"] == f"{folder}/provisioning"
    assert environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/dashboards/overview.json"


@pytest.mark.deploy
def test_the_dashboards_are_what_grafanas_own_types_say(tmp_path: Path) -> None:
    def node(*argv: str) -> str:
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    node(tool("npm"), "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), *SCHEMA)
    (tmp_path / "page.ts").write_text(TYPES)
    (tmp_path / "check.js").write_text(CHECK)
    compiler = {"module": "esnext", "moduleResolution": "bundler", "skipLibCheck": True, "strict": True}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": compiler, "files": ["page.ts"]}))
    generate = ["ts-json-schema-generator", "--path", "page.ts", "--tsconfig", "tsconfig.json", "--no-type-check"]
    node(tool("npx"), *generate, "--type", "Page", "--out", "schema.json")
    schema = json.loads((tmp_path / "schema.json").read_text())
    assert "panels" in schema["definitions"]["Dashboard"]["properties"], "the types were not found"
    files = [str(path) for path in sorted((GRAFANA / "dashboards").glob("*.json"))]
    assert node(tool("node"), "check.js", *files) == ""


@pytest.mark.deploy
def test_a_learner_that_goes_on_from_its_checkpoint_shows_no_leap_of_frames(tmp_path: Path) -> None:
    # 200 a second; it dies, counts 0 until its first update, and goes on from a checkpoint of five seconds before.
    series = {"series": "headrace_learner_env_frames", "values": "1000000+1000x12 _x2 0x2 1011000+1000x12"}
    expression = EXPRESSIONS["overview: Frames/s by role: B"]
    sample = {"labels": "{}", "value": 200}
    expected = [
        {"expr": f"round({expression})", "eval_time": at, "exp_samples": [sample]} for at in ("1m", "1m35s", "2m")
    ]
    tests = [{"interval": "5s", "input_series": [series], "promql_expr_test": expected}]
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"tests": tests}))
    done = subprocess.run([tool("promtool"), "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def filled(server: str, expression: str, seconds: float) -> bool:
    """Whether an expression had a number at some time in the last `seconds`."""
    now = float(ask(server, "query", query="time()")["result"][1])
    answer = ask(server, "query_range", query=expression, start=now - seconds, end=now, step=1)["result"]
    return any(not math.isnan(float(value)) for series in answer for _, value in series["values"])


@pytest.mark.deploy
async def test_each_expression_has_data_of_a_real_job(tmp_path: Path) -> None:
    overrides = ["env.servers=2", "stop.episode_return=1000", "stop.steps=10000000"]
    with Job(ROOT / "configs" / "cartpole_ppo_async.yaml", tmp_path / "job", overrides) as job:
        await until(lambda: job.updates() > 3, "updates")
        targets: dict[str, list[str]] = {}
        for path in (tmp_path / "job" / "logs").iterdir():
            place = re.findall(r"metrics on http://([^/\s]+)/metrics", path.read_text())[-1]
            targets.setdefault(path.stem.partition("-")[0], []).append(place)
        with prometheus(tmp_path, targets) as server:
            missing = dict(EXPRESSIONS)
            end = time.monotonic() + 60
            while missing and time.monotonic() < end:
                await asyncio.sleep(1)
                missing = {key: text for key, text in missing.items() if not filled(server, text, 60)}
    assert missing == {}
