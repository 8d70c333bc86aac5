"""What simulators' libraries say by themselves goes to the log, once, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As a user of Gymnasium makes it, and as an env-server steps what is not stepped natively.
PLAIN = "from services.control.bench.subjects import plain_env; made = plain_env(load(None, [{id!r}], {{}}))"
LOOP = """
from services.env_server.backends import make_backend
made = make_backend(load(None, [{id!r}, "env.vectorized=false"], {{}}).env, 1)._envs[0]
"""
UNSTABLE = """
simulator = made.unwrapped
made.reset()
for _ in range(3):
    simulator.data.qvel[0] = 1e12
    made.step(simulator.action_space.sample())
"""


def said(script: str, where: Path) -> str:
    """Runs a script in a process of its own, for the libraries speak past Python; gives all that it wrote."""
    text = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom common.config import load\n{script}"
    run = subprocess.run([sys.executable, "-c", text], cwd=where, capture_output=True, text=True, check=True)
    return run.stdout + run.stderr


@pytest.mark.parametrize("made", [PLAIN, LOOP], ids=["plain", "loop"])
def test_a_warning_of_mujocos_is_one_line_of_the_log_and_no_file(made: str, tmp_path: Path) -> None:
    # What MuJoCo says of the model, which is Gymnasium's, is no warning.
    (line,) = said(made.format(id="env.id=HalfCheetah-v5") + UNSTABLE, tmp_path).splitlines()
    assert line.startswith("MuJoCo, said once: ")
    assert "unstable" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("made", [PLAIN, LOOP], ids=["plain", "loop"])
def test_ale_does_not_introduce_itself(made: str, tmp_path: Path) -> None:
    assert said(made.format(id="env.id=ALE/Pong-v5"), tmp_path) == ""
