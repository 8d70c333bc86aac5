"""Where the time goes: py-spy on a collect run's processes, by the innermost function of ours or a simulator's.

What a process kept busy is what the kernel says; py-spy, which also sees threads that wait for a core or for Python's
lock, says how that is divided among its functions.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from common.config import CONFIGS, Config
from common.errors import ConfigError, HeadraceError
from services.control.bench.pipeline import cpu_s, open_pipeline
from services.control.bench.train import command, plain_environ

RATE_HZ = 200
_OURS = re.compile(r"^(.*) \(((?:common|services|gymnasium|mujoco|ale_py|minatar|crafter|asyncio)/[^:]*):\d+\)$")
TOP = 5
START_DEADLINE_S = 120.0
_LEAST = 0.005  # of a core: less is not shown
# Where a thread waits; py-spy does not always see that it does.
_WAITING = ("selectors.py", "threading.py", "queue.py", "concurrent/futures/thread.py", "zmq/utils/garbage.py")

Shares = dict[str, tuple[float, Counter[str]]]  # of each process: the cores it kept busy, and samples by function


def profile_collect(config: Config, seconds: float) -> str:
    """Runs `config` once more under py-spy; gives a Markdown table of what keeps each process busy."""

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


def profile_train(config: Config, seconds: float) -> str:
    """Trains `config` once more under py-spy, from its first updates on; gives the same table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with subprocess.Popen(
            command(config, 600 + seconds, folder),
            cwd=CONFIGS.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=plain_environ(),
        ) as job:
            try:
                found = recorded(_pids(job, folder / "run"), seconds)
            finally:
                job.terminate()
    return table(found)


def _pids(job: subprocess.Popen[bytes], run: Path) -> dict[str, int]:
    """Waits until the job learns; gives the process id of each of its services."""
    ends = time.monotonic() + START_DEADLINE_S
    while not (run / "progress.csv").exists() or len((run / "progress.csv").read_text().splitlines()) < 2:
        if job.poll() is not None or time.monotonic() > ends:
            raise HeadraceError("the job did not come to its first update", "try it with `headrace train`")
        time.sleep(0.1)
    pids = {}
    for log in sorted((run / "logs").glob("*.log")):
        url = re.findall(r"metrics on (http://\S+)/metrics", log.read_text())[-1]
        with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
            health = json.loads(answer.read())
        pids[str(health["name"])] = int(health["pid"])
    return pids


def recorded(pids: dict[str, int], seconds: float) -> Shares:
    """Gives, for each named process, how busy it was, and how many samples of `RATE_HZ` a second found it where."""
    if not _spy().exists():
        raise ConfigError(f"--profile needs {_spy()}", "pip install py-spy")
    with tempfile.TemporaryDirectory() as folder:
        began, before = time.monotonic(), {name: cpu_s(name, pid) for name, pid in pids.items()}
        options = ["-d", str(max(1, int(seconds))), "-r", str(RATE_HZ), "-f", "raw"]
        recorders = [
            subprocess.Popen(
                [_spy(), "record", *options, "-o", f"{folder}/{name}", "-p", str(pid)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, pid in pids.items()
        ]
        # Not until the recorders end, which takes them seconds more: what they look at may be gone by then.
        time.sleep(max(1, int(seconds)))
        took = time.monotonic() - began
        cores = {name: (cpu_s(name, pid) - before[name]) / took for name, pid in pids.items()}
        said = [recorder.communicate()[1] for recorder in recorders]
        for name, recorder, words in zip(pids, recorders, said, strict=True):
            if recorder.returncode:
                raise HeadraceError(f"py-spy did not record {name}: {words.strip()[-300:]}", "let it trace processes")
        return {name: (cores[name], shares((Path(folder) / name).read_text())) for name in pids}


def shares(raw: str) -> Counter[str]:
    """Counts samples by function from py-spy's raw format: `frame;frame;… samples` a line."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        if not any(waiting in frames[-1] for waiting in _WAITING):
            found[_function(frames)] += int(samples)
    return found


def _function(frames: list[str]) -> str:
    # uvloop is native code, below the runner's own frame.
    if "Runner.run" in frames[-1]:
        return "(the event loop itself)"
    for frame in reversed(frames):
        if found := _OURS.match(frame):
            return f"{found.group(1)} ({found.group(2)})"
    return frames[-1]


def table(profiles: Shares) -> str:
    """Writes a Markdown table: each process, and its `TOP` functions, in cores."""
    lines = ["| process | cores busy | where |", "|---|---|---|"]
    for name, (busy, counted) in profiles.items():
        lines.append(f"| {name} | {busy:.2f} | all of it |")
        top = [(where, busy * count / counted.total()) for where, count in counted.most_common(TOP)]
        lines += [f"| | {cores:.2f} | `{where}` |" for where, cores in top if cores >= _LEAST]
    return "\n".join(lines)


def _spy() -> Path:
    return Path(sys.executable).with_name("py-spy")
