"""What a benchmark found: every repetition of every subject, as a table for people, Markdown for pages, and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from services.control.words import count


@dataclass(frozen=True, slots=True)
class Row:
    """One subject: its rate in each repetition, and the settings it ran with."""

    name: str
    rates: tuple[float, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


@dataclass(frozen=True, slots=True)
class Report:
    """Subjects measured in turn in one run; ratios are of the row `ours` to each other, repetition by repetition."""

    title: str
    ours: str
    rows: tuple[Row, ...]
    unit: str = "steps/s"
    notes: tuple[str, ...] = ()

    def ratios(self, row: Row) -> tuple[float, ...]:
        """Gives our rate over this row's, repetition by repetition; none of our own row, or where one failed."""
        ours = next(r for r in self.rows if r.name == self.ours)
        if row.name == ours.name or not all(row.rates):
            return ()
        return tuple(a / b for a, b in zip(ours.rates, row.rates, strict=True))

    @property
    def heads(self) -> tuple[str, str, str, str]:
        return (self.title, f"{self.unit}, median", "min to max", f"{self.ours} is")

    def table(self) -> Table:
        """Gives the table for a terminal of 80 columns, its figures to three digits."""
        _, *others = self.heads
        table = Table(box=SIMPLE, pad_edge=False, title=self.title, title_justify="left", title_style="bold")
        table.add_column("", no_wrap=True)
        for head in others:
            table.add_column(head, justify="right")
        for row, cells in zip(self.rows, self._cells(count), strict=True):
            table.add_row(*cells, style="bold" if row.name == self.ours else None)
        return table

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.heads) + " |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in self._cells("{:,.0f}".format)]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def _cells(self, write: Callable[[float], str]) -> list[tuple[str, str, str, str]]:
        """Gives name, median, spread and ratio of each row as text."""
        found = []
        for row in self.rows:
            ratios = self.ratios(row)
            spread = f"{write(min(row.rates))} to {write(max(row.rates))}"
            found.append((row.name, write(row.median), spread, show_ratio(ratios) if ratios else ""))
        return found

    def to_json(self) -> dict[str, Any]:
        rows = [
            {"name": r.name, "rates": r.rates, "median": r.median, "ratios": self.ratios(r), "settings": r.settings}
            for r in self.rows
        ]
        about = {"title": self.title, "unit": self.unit, "ours": self.ours, "machine": machine()}
        return {**about, "date": time.strftime("%Y-%m-%d %H:%M:%S"), "notes": self.notes, "rows": rows}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def show_ratio(ratios: tuple[float, ...]) -> str:
    """Writes ratios as their median and spread: "0.65 x (0.49 to 1.00)"."""
    middle = statistics.median(ratios)
    digits = 0 if middle >= 20 else 2
    if len(ratios) == 1:
        return f"{middle:.{digits}f} x"
    return f"{middle:.{digits}f} x ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"


def machine() -> str:
    """Names the processor and how many of its cores this machine has."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores of {model}"
