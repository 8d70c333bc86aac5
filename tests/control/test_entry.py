"""The first moments of a command: packages that are missing, and Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import PATIENCE_S

from common.config import CONFIGS

ROOT = CONFIGS.parent


def headrace(*argv: str, without: str = "", path: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command line as if the package `without` were not installed, with `path` before all others."""
    program = f"import sys; sys.modules.update(dict.fromkeys({without.split()!r})); sys.argv = {['headrace', *argv]!r}"
    program += f"; sys.path[:0] = {[path, str(ROOT)]!r}; from services.control.entry import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, env=os.environ
    )


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("tensorboard", "train"), ("rich", "cli")])
def test_train_names_a_missing_extra_before_it_starts_anything(tmp_path: Path, module: str, extra: str) -> None:
    done = headrace("train", str(ROOT / "configs/cartpole_ppo.yaml"), f"run.dir={tmp_path}", without=module)
    assert done.returncode == 2, done
    error, remedy = done.stderr.splitlines()
    assert error == f"error: this needs {module}, which is not installed"
    assert remedy == f"remedy: in the clone: pip install -e '.[{extra}]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "command"), [("typer", "algorithms"), ("matplotlib", "plot nowhere")])
def test_any_command_names_a_missing_extra(module: str, command: str) -> None:
    done = headrace(*command.split(), without=module)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"error: this needs {module}, which is not installed"


def test_another_missing_module_keeps_its_traceback() -> None:
    done = headrace("algorithms", without="common.rl.settings")
    assert "ModuleNotFoundError" in done.stderr


def test_ctrl_c_while_the_command_line_loads_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = headrace("algorithms", path=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
