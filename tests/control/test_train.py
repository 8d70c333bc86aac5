"""Whole jobs through the command line, with the real services."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest
from jobs import PATIENCE_S

from common.config import CONFIGS

ROOT = CONFIGS.parent
SHORT = ("configs/cartpole_ppo.yaml", "stop.episode_return=null", "stop.steps=4096")
ENDLESS = ("configs/cartpole_ppo.yaml", "stop.episode_return=null", "stop.steps=1000000000")
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}


@contextmanager
def train(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a job; one that a failed test leaves running is ended, and its guardian ends its services."""
    with subprocess.Popen(
        [sys.executable, "-m", "services.control.cli", "train", *argv],
        cwd=ROOT,
        env=ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        try:
            yield job
        finally:
            job.kill()


def start(tmp_path: Path, *argv: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return train(*argv, f"run.dir={tmp_path}", "run.name=job")


def finish(job: subprocess.Popen[str]) -> str:
    """Waits for a job that shall end well, and gives what it printed."""
    out, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, out
    return out


def until(condition: Callable[[], object], job: subprocess.Popen[str], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert job.poll() is None, f"the job ended: {job.communicate()[0]}"
        assert time.monotonic() < end, what
        time.sleep(0.05)


def result(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "result.json").read_text()))


@pytest.mark.parametrize("engine", ["local", "inline"])
def test_a_job_trains_to_its_goal_and_leaves_a_run_behind(tmp_path: Path, engine: str) -> None:
    with start(tmp_path, *SHORT, "--engine", engine) as job:
        out = finish(job)
    run = tmp_path / "job"
    assert "step limit reached" in out
    assert f"headrace evaluate {run}" in out
    assert result(run)["outcome"] == "steps"
    assert result(run)["steps"] == result(run)["trained_steps"] != 0
    assert (run / "progress.csv").exists()
    log = (run / "logs" / ("inline.log" if engine == "inline" else "learner.log")).read_text()
    saved = re.findall(r"checkpoint: .* updates (\d+)", log)
    assert len(saved) == len(set(saved)) != 0
    evaluate = [sys.executable, "-m", "services.control.cli", "evaluate", str(run), "--episodes", "7"]
    said = subprocess.run(evaluate, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    report = json.loads((run / "evaluation.json").read_text())
    assert f"return {report['mean']:.1f} ± {report['std']:.1f}" in said
    assert len(report["returns"]) == report["episodes"] == 7


def test_ctrl_c_stops_with_a_checkpoint_and_resume_goes_on_from_it(tmp_path: Path) -> None:
    run = tmp_path / "job"
    with start(tmp_path, *ENDLESS, "learner.log_s=0.1") as job:
        until((run / "progress.csv").exists, job, "the learner makes an update")
        family = psutil.Process(job.pid).children(recursive=True)
        job.send_signal(signal.SIGINT)
        assert f"resume with: headrace train --resume {run}" in finish(job)
    assert not any(process.is_running() for process in family)
    before = result(run)
    assert before["outcome"] == "stopped"
    with train("--resume", str(run), "stop.seconds=0.01") as job:
        assert "time limit reached" in finish(job)
    after = result(run)
    assert after["updates"] >= before["updates"] > 0


@pytest.mark.parametrize("engine", ["local", "inline"])
def test_a_terminal_that_closes_stops_a_job_with_a_checkpoint(tmp_path: Path, engine: str) -> None:
    run = tmp_path / "job"
    # Under nohup it is ignored here, and would be by the job.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with start(tmp_path, *ENDLESS, "learner.log_s=0.1", "--engine", engine) as job:
        signal.signal(signal.SIGHUP, before)
        until((run / "progress.csv").exists, job, "the learner makes an update")
        job.send_signal(signal.SIGHUP)
        assert "SIGHUP: stopping after a checkpoint; Ctrl-C stops at once" in finish(job)
    assert result(run)["outcome"] == "stopped"
    assert (run / "checkpoints" / "latest").exists()


def test_what_the_learner_refuses_ends_the_job_with_2_and_its_words(tmp_path: Path) -> None:
    with start(tmp_path, *SHORT, "algorithm.clipp=0.1") as job:
        out, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 2
    assert "error: learner: algorithm.clipp: there is no such setting (value 0.1)\nremedy: did you mean clip?" in out
    assert list(tmp_path.iterdir()) == []
