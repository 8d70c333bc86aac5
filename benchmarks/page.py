"""Writes measured tables into pages, between `<!-- name -->` and `<!-- end -->`, with when and where they are from.

Knows no benchmark.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from services.control.bench.report import machine


def stamped(text: str, how: str) -> str:
    """Gives a section with the line that says when, where and how it was measured, such as "5 seeds"."""
    return f"{text}\n\nMeasured on {date.today():%-d %B %Y} on {machine()}, {how}."


def repetitions(repeat: int, seconds: float | None = None) -> str:
    return f"{repeat} repetition{'s' * (repeat != 1)}" + (f" of {seconds:g} s" if seconds is not None else "")


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Writes what was found to a file, with the machine and the time."""
    about = {"machine": machine(), "date": time.strftime("%Y-%m-%d %H:%M:%S")}
    path.write_text(json.dumps(about | dict(found), indent=1) + "\n")


def show(markdown: str, heads: Sequence[str]) -> None:
    """Prints a Markdown table on the terminal under shorter heads, and the lines that follow it."""
    table, _, notes = markdown.partition("\n\n")
    shown = Table(box=SIMPLE, pad_edge=False)
    for head in heads:
        shown.add_column(head)
    for line in table.splitlines()[2:]:
        shown.add_row(*(cell.strip() for cell in line.strip("|").split("|")))
    console = Console()
    console.print(shown)
    if notes:
        console.print(notes, highlight=False)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Gives the median, and in brackets the least and the greatest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def read_section(page: str, name: str) -> str:
    """Gives the text between the markers of section `name`; raises ValueError where there are none."""
    return _split(page, name)[1]


def fill(page: str, name: str, text: str) -> str:
    """Gives `page` with `text` between the markers of section `name`; raises ValueError where there are none."""
    before, _, after = _split(page, name)
    return f"{before}{text}\n{after}"


def _split(page: str, name: str) -> tuple[str, str, str]:
    """Gives the page up to a section's text, that text, and the rest; each with the marker that belongs to it."""
    before, marker, rest = page.partition(f"<!-- {name} -->\n")
    text, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"the page has no section {name!r}: write <!-- {name} --> and <!-- end --> into it")
    return before + marker, text, end + after


def write_sections(path: Path, sections: Mapping[str, str]) -> None:
    """Writes each section's text into the page at `path`."""
    page = path.read_text()
    for name, text in sections.items():
        page = fill(page, name, text)
    path.write_text(page)
