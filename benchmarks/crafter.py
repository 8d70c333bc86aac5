"""Crafter's score and success rates over all training episodes of a run, from what its env-servers counted.

python -m benchmarks.crafter RUN [--write]
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from benchmarks.page import write_sections
from benchmarks.results import PAGE
from services.env_server.backends.crafter import crafter_score

ACHIEVEMENT = "achievement/"


def counted(run: Path) -> Counter[str]:
    """Gives the sums over all streams of a run that has ended."""
    found: Counter[str] = Counter()
    for log in (run / "logs").glob("env-*.log"):
        for text in re.findall(r" counted (\{.*\})$", log.read_text(), re.MULTILINE):
            found.update(json.loads(text))
    return found


def report(run: Path) -> str:
    """Gives the score and a table of the success rates, in per cent."""
    tallies = counted(run)
    steps = json.loads((run / "result.json").read_text())["steps"]
    rates = {name.removeprefix(ACHIEVEMENT): count for name, count in tallies.items() if name.startswith(ACHIEVEMENT)}
    lines = [
        f"Score {crafter_score(tallies):.1f} % over the {tallies['episodes']:,} episodes of {steps:,} training steps.",
        "",
        "| achievement | unlocked in |",
        "|---|---|",
        *(f"| {name} | {100 * count / tallies['episodes']:.1f} % |" for name, count in sorted(rates.items())),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--write", action="store_true", help="into docs/results.md")
    arguments = parser.parse_args()
    text = report(arguments.run)
    print(text)
    if arguments.write:
        write_sections(PAGE, {"crafter": text})


if __name__ == "__main__":
    main()
