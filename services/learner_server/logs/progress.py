"""progress.csv: a row for each moment that is logged, whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Progress:
    """Appends rows; the first one fixes the columns, for the lives of the learner to come too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] | None = None
        if path.exists():
            with path.open(newline="") as file:
                self._columns = next(csv.reader(file), None)

    def append(self, values: Mapping[str, float]) -> None:
        """Appends a row; raises OSError where the disk does not take it."""
        self._columns = self._columns or [*values]
        size = self._path.stat().st_size if self._path.exists() else 0
        head = [] if size else [self._columns]
        try:
            with self._path.open("a", newline="") as file:
                csv.writer(file).writerows([*head, [_short(values.get(name, "")) for name in self._columns]])
        except OSError:
            os.truncate(self._path, size)  # half a row would spoil the next one
            raise


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
