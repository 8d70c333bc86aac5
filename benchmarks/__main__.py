"""`make bench`: runs every benchmark and writes its tables into docs/benchmarks.md, between their markers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path

from benchmarks import collect, connections, solve, wire

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def machine() -> str:
    """Says what was measured on, and when."""
    said = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    model, cores = fields["Model name"].strip(), fields["CPU(s)"].strip()
    return f"Measured on {date.today():%-d %B %Y} on {cores} cores of {model}."


SECTIONS: dict[str, Callable[[], str]] = {
    "machine": machine,
    "solve": lambda: solve.report(5, solve.peer_python()),
    "collect": lambda: collect.report([], 10.0, 5, profile=True),
    "connections": lambda: connections.report(5.0, 3),
    "wire": lambda: wire.report(5),
}


def fill(page: str, name: str, text: str) -> str:
    """Gives `page` with `text` between the markers of section `name`."""
    before, marker, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{marker}{text}\n{end}{after}"


def main() -> None:
    for name, measure in SECTIONS.items():
        print(f"{name} …", flush=True)
        text = measure()
        print(text, flush=True)
        # Written after each, so that a run that is cut short keeps what it has.
        PAGE.write_text(fill(PAGE.read_text(), name, text))


if __name__ == "__main__":
    main()
