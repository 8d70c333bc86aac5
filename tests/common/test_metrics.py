from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from common.metrics import BatchHistogram


def test_a_batch_histogram_counts_as_prometheus_own_does() -> None:
    values = np.array([-5.0, 0.0, 0.5, 1.0, 1.5, 10.0, 11.0])
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batch = BatchHistogram("returns", "Returns", (0.0, 1.0, 10.0), ours)
    one = Histogram("returns", "Returns", buckets=(0.0, 1.0, 10.0), registry=theirs)
    batch.observe(values[:3])
    batch.observe(values[3:])
    for value in values:
        one.observe(value)
    expected = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == expected
