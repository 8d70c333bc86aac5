"""An algorithm for job tests: IMPALA, which also reports how many versions ago its newest step was acted."""

from __future__ import annotations

from typing import Any

from common.rl.algorithms.impala import IMPALA
from common.rl.batch import Batch
from common.types import version_updates


class Reporting(IMPALA):
    """Adds `lag_min` to the metrics of an update."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._updates = 0

    def learn(self, batch: Batch, progress: float) -> dict[str, float]:
        assert batch.versions is not None
        lag = self._updates - version_updates(int(batch.versions.max()))
        metrics = super().learn(batch, progress)
        self._updates += 1
        return {**metrics, "lag_min": float(lag)}
