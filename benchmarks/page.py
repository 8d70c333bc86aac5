"""Writes measured tables into pages, between `<!-- name -->` and `<!-- end -->`, and ratios into tables.

Knows no benchmark.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path


def spread(ratios: Sequence[float]) -> str:
    """Gives the median, and in brackets the least and the greatest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def fill(page: str, name: str, text: str) -> str:
    """Gives `page` with `text` between the markers of section `name`; raises ValueError where there are none."""
    before, marker, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"the page has no section {name!r}: write <!-- {name} --> and <!-- end --> into it")
    return f"{before}{marker}{text}\n{end}{after}"


def write_sections(path: Path, sections: Mapping[str, str]) -> None:
    """Writes each section's text into the page at `path`."""
    page = path.read_text()
    for name, text in sections.items():
        page = fill(page, name, text)
    path.write_text(page)
