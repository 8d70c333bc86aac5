"""The Prometheus metrics of each role, on one registry per service; docs/operations.md explains them.

Names are `headrace_<role>_<what>_<unit>`. Labels stay low in cardinality: tables, message kinds, error codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = tuple(float(2**k) for k in range(17))
LAGS = (0.0, *SIZES[:11])
RETURNS = (-1e4, -3e3, -1e3, -300, -100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100, 200, 300, 400, 475, 500, 1e3, 3e3, 1e4)
LENGTHS = tuple(float(10**k * m) for k in range(5) for m in (1, 2, 5))


class BatchHistogram(Collector):
    """A histogram that takes a whole array of observations at the price of one."""

    def __init__(self, name: str, text: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self._bounds = np.array(buckets, np.float64)
        self._counts = np.zeros(len(buckets) + 1, np.int64)
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: np.ndarray) -> None:
        """Counts `values` [N]."""
        # "left": an observation equal to a bound belongs to that bound's bucket.
        self._counts += np.bincount(self._bounds.searchsorted(values, "left"), minlength=len(self._counts))
        self._sum += float(values.sum())

    def collect(self) -> Iterable[Metric]:
        bounds = [*(str(bound) for bound in self._bounds.tolist()), "+Inf"]
        counts = self._counts.cumsum().tolist()
        yield HistogramMetricFamily(self._name, self._text, list(zip(bounds, counts, strict=True)), self._sum)


class ServiceMetrics:
    """What every service counts, under its role's name."""

    def __init__(self, role: str, registry: CollectorRegistry) -> None:
        p = f"headrace_{role}_"
        self.restarts = Gauge(p + "restarts", "Times the engine has restarted this process", registry=registry)
        self.start = Gauge(p + "process_start_seconds", "Unix time the process started", registry=registry)
        self.errors = Counter(p + "errors", "Errors answered or met, by code", ["code"], registry=registry)
        received = Counter(p + "received_bytes", "Bytes received, by message kind", ["kind"], registry=registry)
        sent = Counter(p + "sent_bytes", "Bytes sent, by message kind", ["kind"], registry=registry)
        # Asked for each message's kind: prometheus-client's own look-up takes a lock.
        self.bytes_in, self.bytes_out = cache(received.labels), cache(sent.labels)
        self.in_flight = Gauge(p + "requests_in_flight", "Requests sent and not yet answered", registry=registry)
        self.parked = Gauge(p + "requests_parked", "Requests received and not yet answered", registry=registry)
        self.resends = Counter(p + "resent_requests", "Requests sent again for want of an answer", registry=registry)
        self.stalls = Counter(p + "stalled_peers", "Times a peer was silent past its deadline", registry=registry)


class EnvMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        p = "headrace_env_"
        self.steps = Counter(p + "steps", "Valid agent decisions inserted", registry=registry)
        self.frames = Counter(p + "frames", "Simulator ticks behind them", registry=registry)
        self.unrolls = Counter(p + "unrolls", "Unrolls inserted", registry=registry)
        self.episode_return = BatchHistogram(p + "episode_return", "Episode returns", RETURNS, registry)
        self.episode_length = BatchHistogram(p + "episode_length_steps", "Lengths", LENGTHS, registry)
        # No counter: what a simulator sums up may be negative, as scores are.
        self.tallies = Gauge(p + "tallies", "The simulator's sums over episodes", ["name", "slot"], registry=registry)
        self.act_seconds = Histogram(p + "act_seconds", "Round trip of an Act", buckets=SECONDS, registry=registry)
        self.step_seconds = Histogram(p + "step_seconds", "One group step", buckets=SECONDS, registry=registry)
        self.work_seconds = Counter(p + "work_seconds", "In simulators; of threads the mean", registry=registry)


class InferenceMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        p = "headrace_inference_"
        self.batch_size = Histogram(p + "batch_size_envs", "Environments per pass", buckets=SIZES, registry=registry)
        self.forward_seconds = Histogram(p + "forward_seconds", "One pass", buckets=SECONDS, registry=registry)
        self.queue_depth = Gauge(p + "queue_depth", "Requests waiting for a pass", registry=registry)
        self.weights_updates = Gauge(p + "weights_version_updates", "Updates behind the weights", registry=registry)


class ReplayMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        p, t = "headrace_replay_", ["table"]
        self.items = Gauge(p + "items", "Items in the table", t, registry=registry)
        self.bytes = Gauge(p + "table_bytes", "Bytes held by the table", t, registry=registry)
        self.inserts = Counter(p + "inserts", "Unrolls inserted; steps of a ring", t, registry=registry)
        self.samples = Counter(p + "samples", "Items sampled", t, registry=registry)
        self.ratio = Gauge(p + "sample_insert_ratio", "Items sampled per insert", t, registry=registry)
        self.ahead = Gauge(p + "limiter_ahead_items", "How far draws ran ahead", t, registry=registry)
        self.blocked = Counter(p + "limiter_blocked_seconds", "Time held back", ["table", "side"], registry=registry)
        self.discarded = Counter(p + "discarded_unrolls", "Unrolls discarded as stale", t, registry=registry)
        self.stale = Counter(p + "stale_priorities", "Priorities whose items were gone", t, registry=registry)
        self.spoilt = Counter(p + "spoilt_steps", "Steps left out as not finite", t, registry=registry)
        self.queue_depth = Gauge(p + "queue_depth", "Inserts waiting for room", t, registry=registry)


class LearnerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        p = "headrace_learner_"
        self.updates = Counter(p + "updates", "Batches learned from", registry=registry)
        self.version = Gauge(p + "weights_version_updates", "Updates behind the weights", registry=registry)
        self.env_steps = Gauge(p + "env_steps", "Steps collected by all streams", registry=registry)
        self.env_frames = Gauge(p + "env_frames", "Frames collected by all streams", registry=registry)
        self.trained_steps = Counter(p + "trained_steps", "Steps trained on", registry=registry)
        self.update_seconds = Histogram(p + "update_seconds", "One update", buckets=SECONDS, registry=registry)
        self.policy_lag = Histogram(p + "policy_lag_versions", "Versions since acting", buckets=LAGS, registry=registry)
        self.policy_lag_max = Gauge(p + "policy_lag_max_versions", "Largest lag in the last batch", registry=registry)
        self.policy_lag_bound = Gauge(p + "policy_lag_bound_versions", "Largest lag allowed", registry=registry)
        self.queue_depth = Gauge(p + "queue_depth", "Batches fetched ahead", registry=registry)
        self.episode_return = Gauge(p + "episode_return", "Mean return of the last episodes", registry=registry)
        self.episode_length = Gauge(p + "episode_length_steps", "Mean length of the last episodes", registry=registry)
        self.episodes = Counter(p + "episodes", "Training episodes seen", registry=registry)
        self.progress = Gauge(p + "progress_ratio", "Progress to the nearest stop condition", registry=registry)
        self.skipped = Counter(p + "skipped_updates", "Updates skipped as not finite", registry=registry)
        self.loss = Gauge(p + "loss", "Losses and other scalars of the last update", ["name"], registry=registry)
        self.checkpoints = Counter(p + "checkpoints", "Checkpoints written", registry=registry)
        self.disk_free = Gauge(p + "disk_free_bytes", "Free bytes where the run is kept", registry=registry)
        self.disk_size = Gauge(p + "disk_size_bytes", "All bytes where the run is kept", registry=registry)
        self.job = Gauge(p + "job_info", "1, for the job's names", ["algorithm", "env", "run"], registry=registry)
        self.stop = Gauge(p + "stop_limit", "What ends the job, by setting of stop", ["setting"], registry=registry)
