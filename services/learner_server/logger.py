"""The experiment's log: progress.csv, TensorBoard events and result.json in the run's directory."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Logger:
    """Appends a row to progress.csv and the same scalars to TensorBoard; both are as complete as the last `write`."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = run_dir / "progress.csv"
        self._columns: list[str] | None = None
        if self._path.exists():
            with self._path.open(newline="") as file:
                self._columns = next(csv.reader(file), None)
        self._events = SummaryWriter(str(run_dir / "tensorboard"), flush_secs=10)

    def write(self, row: Mapping[str, float], scalars: Mapping[str, float]) -> None:
        """Writes the job's row and the algorithm's scalars; the first row fixes the columns of the csv."""
        if self._columns is None:
            self._columns = [*row, *scalars]
            with self._path.open("w", newline="") as file:
                csv.writer(file).writerow(self._columns)
        values = {**row, **scalars}
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow([_short(values.get(name, "")) for name in self._columns])
        for name, value in values.items():
            group = "train" if name in scalars else "progress"
            self._events.add_scalar(f"{group}/{name}", value, int(row["steps"]))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json and closes the files."""
        (self._run_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        self._events.close()


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
