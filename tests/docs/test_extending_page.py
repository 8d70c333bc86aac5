"""The worked example of docs/extending.md runs and learns as it is printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = dict(
    re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', (ROOT / "docs" / "extending.md").read_text(), re.M | re.S)
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the page's files into a directory of their own."""
    directory = tmp_path_factory.mktemp("job")
    for name, text in BLOCKS.items():
        if "." in name:
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text)
    (directory / "corridor" / "__init__.py").touch()
    return directory


def headrace(job: Path, title: str, *more: str) -> str:
    """Runs the page's command of this title and gives what it printed."""
    program, *arguments = shlex.split(BLOCKS[title])
    assert program == "headrace"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    environ = kept | {"PYTHONPATH": f"{ROOT}{os.pathsep}{job}", "COLUMNS": "200"}
    command = [sys.executable, "-m", "services.control.cli", *arguments, *more]
    ran = subprocess.run(command, cwd=job, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Warning" not in ran.stderr
    return ran.stdout


def test_the_environment_passes_the_check(job: Path) -> None:
    printed = headrace(job, "check")
    assert "corridor.envs:Corridor will run" in printed
    assert "obs: float32[6]" in printed
    assert "headrace train --algo ppo --env corridor.envs:Corridor 'env.kwargs={length: 6}'" in printed


def test_the_job_is_solved_and_its_policy_walks_straight(job: Path) -> None:
    headrace(job, "inline")
    result = json.loads((job / "runs" / "corridor" / "result.json").read_text())
    assert result["outcome"] == "solved"
    headrace(job, "evaluate")
    evaluation = json.loads((job / "runs" / "corridor" / "evaluation.json").read_text())
    assert evaluation["returns"] == pytest.approx([0.6] * 10)
