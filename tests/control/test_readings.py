"""Reading /metrics and /healthz."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from common.config import Config
from common.metrics import LearnerMetrics, ReplayMetrics
from common.service import make_context, serve_http
from services.control.readings import labelled, parse_metrics, read, total

PAGE = """# HELP a_total Things
# TYPE a_total counter
a_total{table="x y",side="in"} 2.0
a_total{table="z"} 3.5e+01
b 1e-05
c_bucket{le="+Inf"} 4.0
c_sum 0.5 1700000000
d NaN
"""


def test_samples_are_kept_by_name_and_labels_without_buckets() -> None:
    samples = parse_metrics(PAGE)
    assert samples.pop("d") != 0
    assert samples == {'a_total{table="x y",side="in"}': 2.0, 'a_total{table="z"}': 35.0, "b": 1e-05, "c_sum": 0.5}


def test_total_sums_over_labels_and_tells_absence_from_zero() -> None:
    samples = parse_metrics(PAGE)
    assert total(samples, "a_total") == 37.0
    assert total(samples, "b") == 1e-05
    assert total(samples, "a") is None


def test_labels_are_read_as_they_were_before_they_were_written() -> None:
    registry = CollectorRegistry()
    value = 'a "b" \\ c=1,\nd'
    ReplayMetrics(registry).inserts.labels(value).inc(3)
    samples = parse_metrics(generate_latest(registry).decode())
    assert labelled(samples, "headrace_replay_inserts_total") == [({"table": value}, 3.0)]


def test_parser_agrees_with_prometheus_on_every_sample_of_a_service() -> None:
    registry = CollectorRegistry()
    ReplayMetrics(registry).blocked.labels("experience", "insert").inc(1.25)
    LearnerMetrics(registry).update_seconds.observe(0.003)
    page = generate_latest(registry).decode()
    ours = parse_metrics(page)
    theirs = [s for family in text_string_to_metric_families(page) for s in family.samples]
    theirs = [s for s in theirs if not s.name.endswith("_bucket")]
    assert len(ours) == len(theirs)
    for sample in theirs:
        assert total(ours, sample.name) == sample.value, sample


async def test_a_running_service_is_read_and_a_gone_one_is_none() -> None:
    context = make_context(Config(), "learner")
    LearnerMetrics(context.registry).env_steps.set(1234)
    context.health.waiting("x")("replay at ipc://x")
    server = serve_http(context)
    url = f"http://127.0.0.1:{server.server_port}"
    reading = await read(url)
    await asyncio.to_thread(server.shutdown)
    server.server_close()
    assert reading is not None
    assert reading.samples["headrace_learner_env_steps"] == 1234.0
    assert (reading.health["name"], reading.health["waiting_for"]) == ("learner", "replay at ipc://x")
    assert await read(url) is None
