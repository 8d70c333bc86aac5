"""The experiment's log: progress.csv, TensorBoard events and result.json in the run's directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_whole
from services.learner_server.logs.events import Events
from services.learner_server.logs.progress import Progress


class Logger:
    """Appends a row to progress.csv and the same scalars to TensorBoard; both are as complete as the last `write`."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._progress = Progress(run_dir / "progress.csv")
        self._events = Events(run_dir / "tensorboard")

    def write(self, row: Mapping[str, float], scalars: Mapping[str, float]) -> None:
        """Writes the job's row and the algorithm's scalars; raises OSError where the disk does not take them."""
        self._progress.append({**row, **scalars})
        named = {f"progress/{name}": value for name, value in row.items() if name not in scalars}
        self._events.add(named | {f"train/{name}": value for name, value in scalars.items()}, int(row["steps"]))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json and closes the files."""
        write_whole(self._run_dir / "result.json", json.dumps(result, indent=2) + "\n")
        self._events.close()
