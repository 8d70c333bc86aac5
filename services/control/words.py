"""Writes numbers and goals the way people read them; shared by the display, the plain lines and the summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from common.config import StopConfig

UNKNOWN = "-"
_BARS = "▁▂▃▄▅▆▇█"


def count(value: float | None) -> str:
    """Writes 87234 as "87.2k"; a dash where nothing is known."""
    if value is None:
        return UNKNOWN
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            text = f"{value / size:.3g}"
            return (f"{value / size:.0f}" if "e" in text else text) + letter
    return f"{value:.0f}"


def number(value: float | None) -> str:
    """Writes a return: as many decimals as its size deserves."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def percent(share: float) -> str:
    """Writes a share done as "99%", rounded down: only what is over is at 100%."""
    return f"{math.floor(100 * share + 1e-9)}%"


def clock(seconds: float | None) -> str:
    """Writes seconds as "7 s", "3 min 07 s" or "2 h 05 min"."""
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def goal(stop: StopConfig, now: float | None = None) -> str:
    """Says what ends the job, with the return `now`: "return 475 (now 231.4), at most 500k steps"."""
    limits = [f"{count(limit)} {unit}" for limit, unit in ((stop.steps, "steps"), (stop.frames, "frames")) if limit]
    if stop.seconds:
        limits.append(clock(stop.seconds))
    at_most = " or ".join(limits)
    if stop.episode_return is None:
        return at_most or "none: until Ctrl-C"
    text = f"return {stop.episode_return:g}" + (f" (now {number(now)})" if now is not None else "")
    return f"{text}, at most {at_most}" if at_most else text


def sparkline(values: Sequence[float], width: int) -> str:
    """Draws `values` as `width` bars at most, each the mean of an equal share of them."""
    if len(values) > width:
        edges = [len(values) * i // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)
