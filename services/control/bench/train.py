"""`headrace bench train`: whole jobs, steps counted when they are trained on, beside the limit and the peers."""

from __future__ import annotations

import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.config import CONFIGS, Config
from common.errors import HeadraceError
from services.control.bench import peers
from services.control.bench.collect import (
    DEFAULT,
    LIMIT,
    TUNED,
    Say,
    check_same,
    describe,
    gymnasium_subjects,
    interleave,
    rows_of,
    settings_of,
)
from services.control.bench.report import Report
from services.control.bench.subjects import rate, step_infer_learn

WARM_SHARE = 0.2
# A job goes on until so many updates are measured, or for so many times as long.
UPDATES, PATIENCE = 20, 4
POLL_S, LOG_S = 0.2, 0.05
COLUMNS = ("seconds", "trained_steps", "steps", "updates")


def train_rate(config: Config, seconds: float) -> float:
    """Gives the steps per second that `headrace train` trains on, after start-up and warm-up.

    That is over `seconds`, or longer where `UPDATES` updates take longer: over a few, what came first counts too much.
    """
    warm_s = seconds * WARM_SHARE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress, said = folder / "run" / "progress.csv", folder / "stderr"
        with (
            said.open("w") as stderr,
            subprocess.Popen(
                command(config, warm_s + PATIENCE * seconds, folder),
                cwd=CONFIGS.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=plain_environ(),
            ) as job,
        ):
            try:
                while (code := job.poll()) is None and not enough(progress, warm_s, seconds):
                    time.sleep(POLL_S)
            finally:
                job.terminate()
        if code:
            raise HeadraceError(f"the job ended with exit code {code}", said.read_text()[-600:])
        return measured(progress, warm_s)


def plain_environ() -> dict[str, str]:
    """Gives this environment without Headrace's variables: they made the config, and are not laid over it again."""
    return {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}


def command(config: Config, seconds: float, folder: Path) -> list[str]:
    """Gives the command that trains `config` for `seconds`, whatever its own goal, as the run `run` in `folder`."""
    stop = {"seconds": seconds, "steps": 0, "frames": 0, "episode_return": None}
    job = config.model_copy(
        update={
            "stop": config.stop.model_copy(update=stop),
            "learner": config.learner.model_copy(update={"log_s": LOG_S}),
        }
    )
    path = folder / "job.yaml"
    path.write_text(job.to_yaml())
    trained = ["train", str(path), f"run.dir={folder}", "run.name=run"]
    return [sys.executable, "-m", "services.control.cli", *trained]


def enough(progress: Path, warm_s: float, seconds: float) -> bool:
    """Says whether `progress.csv` has `UPDATES` updates and `seconds` to measure."""
    rows = _warm(progress, warm_s)
    return bool(rows) and all(
        rows[-1][key] - rows[0][key] >= least for key, least in (("seconds", seconds), ("updates", UPDATES))
    )


def measured(progress: Path, warm_s: float) -> float:
    """Gives the steps trained on per second between the first row of `progress.csv` that is warm and its last."""
    rows = _warm(progress, warm_s)
    if len(rows) < 2 or rows[-1]["seconds"] <= rows[0]["seconds"]:
        raise HeadraceError("too few updates to measure", "measure for more --seconds")
    passed, trained = (rows[-1][key] - rows[0][key] for key in ("seconds", "trained_steps"))
    return trained / passed


def _warm(progress: Path, warm_s: float) -> list[dict[str, float]]:
    """Gives the rows of `progress.csv` from the first one on that is warm.

    That is the first after `warm_s` seconds by which as much lies in the queues as in most rows: while they fill, a job
    collects more than it trains on.
    """
    if not progress.exists():
        return []
    with progress.open(newline="") as file:
        # The last line may be half written.
        whole = [row for row in csv.DictReader(file) if None not in row.values()]
    read = [{key: float(row[key]) for key in COLUMNS} for row in whole]
    queued = [row["steps"] - row["trained_steps"] for row in read if row["seconds"] >= warm_s]
    usual = statistics.median(queued) if queued else 0.0
    full = itertools.dropwhile(lambda row: row["steps"] - row["trained_steps"] < usual, read)
    return [row for row in full if row["seconds"] >= warm_s]


def bench_train(jobs: tuple[Config, Config], seconds: float, repeat: int, home: Path, say: Say) -> Report:
    """Measures the default job and the tuned one, the limit of the latter, and each installed peer's best setting."""
    default, tuned = jobs
    check_same(tuned, default)
    cores = os.cpu_count() or 1
    env_id = tuned.env.id
    beside = peers.beside([p for p in peers.installed(home) if env_id in p.trains], home, env_id, seconds, say)
    subjects = {
        DEFAULT: lambda: train_rate(default, seconds),
        TUNED: lambda: train_rate(tuned, seconds),
        **gymnasium_subjects(tuned, seconds),
        LIMIT: lambda: rate(step_infer_learn, tuned, seconds, cores),
        **beside.measures,
    }
    settings = {DEFAULT: settings_of(default), TUNED: settings_of(tuned), LIMIT: settings_of(tuned)}
    rows = rows_of(interleave(subjects, repeat, say), settings, beside)
    notes = (describe("tuned", tuned), "A peer's settings were chosen for speed and not checked to learn.")
    return Report(f"{env_id}, training", TUNED, rows, notes=(*notes, *beside.failed.values()))
