"""Where the time goes: py-spy on a collect run's processes, by the innermost function of ours or a simulator's."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from common.config import Config
from common.errors import ConfigError
from services.control.bench.pipeline import open_pipeline

RATE_HZ = 200
_OURS = re.compile(r"^(.*) \(((?:common|services|gymnasium|mujoco|ale_py|minatar|crafter|asyncio)/[^:]*):\d+\)$")
_IDLE = ("selectors.py", "threading.py")
_OTHER_THREADS = ("serve_forever", "_worker", "GarbageCollectorThread")

Shares = dict[str, Counter[str]]


def profile_collect(config: Config, seconds: float) -> str:
    """Runs `config` once more under py-spy; gives a Markdown table of each process's largest shares."""
    if not _spy().exists():
        raise ConfigError(f"--profile needs {_spy()}", "pip install py-spy")

    async def run() -> Shares:
        recordings: list[Future[Shares]] = []
        with ThreadPoolExecutor(1) as pool:
            async with open_pipeline() as pipeline:

                def record() -> None:
                    pids = {child.name: child.process.pid for child in pipeline.children}
                    recordings.append(pool.submit(recorded, pids, 0.8 * seconds))

                await pipeline.run(config, seconds, warm_s=seconds / 5, warm=record)
                return await asyncio.wrap_future(recordings[0])

    return table(asyncio.run(run()))


def recorded(pids: dict[str, int], seconds: float) -> Shares:
    """Gives, for each named process, its samples by function; threads beside the loop are left out."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["-d", str(max(1, int(seconds))), "-r", str(RATE_HZ), "--idle", "-f", "raw"]
        recorders = [
            subprocess.Popen(
                [_spy(), "record", *options, "-o", f"{folder}/{name}", "-p", str(pid)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for name, pid in pids.items()
        ]
        for recorder in recorders:
            recorder.wait()
        return {name: shares((Path(folder) / name).read_text()) for name in pids}


def shares(raw: str) -> Counter[str]:
    """Counts samples by function from py-spy's raw format: `frame;frame;… samples` a line."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        if not any(thread in frame for frame in frames for thread in _OTHER_THREADS):
            found[_function(frames)] += int(samples)
    return found


def _function(frames: list[str]) -> str:
    # uvloop waits in native code, below the runner's own frame.
    if "Runner.run" in frames[-1] or any(idle in frames[-1] for idle in _IDLE):
        return "(waits, or the loop itself)"
    for frame in reversed(frames):
        if found := _OURS.match(frame):
            return f"{found.group(1)} ({found.group(2)})"
    return frames[-1]


def table(profiles: Shares, top: int = 8) -> str:
    """Writes a Markdown table of each process's largest shares."""
    lines = ["| process | share | where |", "|---|---|---|"]
    for name, counted in profiles.items():
        whole = sum(counted.values()) or 1
        lines += [f"| {name} | {samples / whole:.0%} | `{where}` |" for where, samples in counted.most_common(top)]
    return "\n".join(lines)


def _spy() -> Path:
    return Path(sys.executable).with_name("py-spy")
