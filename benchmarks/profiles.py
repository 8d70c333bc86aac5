"""Where the time goes: py-spy on running processes, by the innermost function of ours or of the simulator."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

_OURS = re.compile(r"^(.*) \(((?:common|services|gymnasium|mujoco|minatar|asyncio)/[^:]*):\d+\)$")
_IDLE = ("selectors.py", "threading.py")
_OTHER_THREADS = ("serve_forever", "_worker", "GarbageCollectorThread")


def record(pids: dict[str, int], seconds: float) -> dict[str, Counter[str]]:
    """Gives, for each named process, its samples by function; threads beside the loop are left out."""
    spy = Path(sys.executable).with_name("py-spy")
    with tempfile.TemporaryDirectory() as folder:
        recorders = {
            name: subprocess.Popen(
                [
                    spy,
                    "record",
                    "-d",
                    str(max(1, int(seconds))),
                    "-r",
                    "200",
                    "--idle",
                    "-f",
                    "raw",
                    "-o",
                    f"{folder}/{name}",
                    "-p",
                    str(pid),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for name, pid in pids.items()
        }
        for recorder in recorders.values():
            recorder.wait()
        return {name: _count((Path(folder) / name).read_text()) for name in pids}


def _count(raw: str) -> Counter[str]:
    shares: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        if any(thread in frame for frame in frames for thread in _OTHER_THREADS):
            continue
        shares[_function(frames)] += int(samples)
    return shares


def _function(frames: list[str]) -> str:
    # uvloop waits in native code, below the runner's own frame.
    if "Runner.run" in frames[-1] or any(idle in frames[-1] for idle in _IDLE):
        return "(waits, or the loop itself)"
    for frame in reversed(frames):
        if found := _OURS.match(frame):
            return f"{found.group(1)} ({found.group(2)})"
    return frames[-1]


def table(profiles: dict[str, Counter[str]], top: int = 8) -> str:
    """Writes a Markdown table of each process's largest shares."""
    lines = ["| process | share | where |", "|---|---|---|"]
    for name, shares in profiles.items():
        whole = sum(shares.values()) or 1
        lines += [f"| {name} | {samples / whole:.0%} | `{where}` |" for where, samples in shares.most_common(top)]
    return "\n".join(lines)
