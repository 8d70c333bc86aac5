"""Draws each panel of the overview dashboard as a PNG, from Prometheus: `python docs/draw_panels.py http://host:9090`.

The expressions are those of deploy/grafana/dashboards/overview.json, so that what is drawn is what Grafana would show.
"""

from __future__ import annotations

import argparse
import json
import re
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, PercentFormatter

ROOT = Path(__file__).resolve().parents[1]
OVERVIEW = ROOT / "deploy" / "grafana" / "dashboards" / "overview.json"
POINTS = 300
RATE_INTERVAL = "20s"
FORMATS = {
    "s": EngFormatter("s"),
    "Bps": EngFormatter("B/s"),
    "percentunit": PercentFormatter(1.0),
    "short": FuncFormatter(lambda value, _: EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{value:g}"),
}


def ask(server: str, path: str, **parameters: object) -> Any:
    """Gives the data of an answer of Prometheus's HTTP API."""
    url = f"{server}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.loads(answer.read())["data"]


def draw(axes: Axes, panel: dict[str, Any], server: str, start: float, end: float) -> None:
    """Draws the queries of one panel over `start` to `end`, Unix seconds; the axis counts from `start`."""
    step = max(1.0, (end - start) / POINTS)
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
        for series in ask(server, "query_range", query=query, start=start, end=end, step=step)["result"]:
            labels = series["metric"]
            legend = re.sub(r"{{(\w+)}}", lambda m, labels=labels: labels.get(m[1], ""), target["legendFormat"])
            points = [(float(at) - start, float(value)) for at, value in series["values"]]
            axes.plot(*zip(*points, strict=True), label=legend, linewidth=1.6)
    assert axes.lines, f"{panel['title']}: no data; is this the time at which the job ran?"
    axes.margins(y=0.08)
    axes.yaxis.set_major_formatter(FORMATS[panel["fieldConfig"]["defaults"]["unit"]])
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlim(0, end - start)
    axes.set_xlabel("seconds")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, fontsize=7, frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", help="address of a Prometheus that has scraped a job")
    parser.add_argument("--seconds", type=float, default=600, help="how far back to look")
    parser.add_argument("--until", type=float, help="Unix time to look back from; now, if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "panels")
    chosen = parser.parse_args()
    end = chosen.until or float(ask(chosen.server, "query", query="time()")["result"][1])
    chosen.out.mkdir(parents=True, exist_ok=True)
    for panel in json.loads(OVERVIEW.read_text())["panels"]:
        figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
        draw(axes, panel, chosen.server, end - chosen.seconds, end)
        name = re.sub(r"\W+", "-", panel["title"].lower()).strip("-")
        kind = "now-" if panel["type"] == "stat" else ""
        figure.savefig(chosen.out / f"{kind}{name}.png", dpi=100)
        plt.close(figure)


if __name__ == "__main__":
    main()
