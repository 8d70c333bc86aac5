"""What containers rest on, as far as it needs no engine."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import yaml
from scraping import ROOT

PAGE = (ROOT / "docs" / "deploy.md").read_text()
# The kernel spares a process 1 the signals that it has no handler for; here SIG_IGN does.
PROCESS_1 = """
import os, signal
me, os.getpid = os.getpid(), lambda: 1
signal.signal(signal.SIGTERM, signal.SIG_IGN)
import services
os.kill(me, signal.SIGTERM)
"""


def test_hosts_build_the_images_before_they_start_a_service_that_builds_none() -> None:
    block = next(text for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "ACT_ADDRESSES=" in text)
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert "build" not in services["inference-server"]
    assert 0 < block.find("docker compose build") < block.find("docker compose up")


def test_a_run_is_copied_into_a_folder_that_is_there() -> None:
    # Where there is none, Docker takes the last name for the copy's own.
    (line,) = re.findall(r"^.*docker compose cp .*$", PAGE, re.MULTILINE)
    assert line.startswith("mkdir -p runs && ")
    assert line.endswith("/runs/cartpole runs/")


def test_process_1_ends_when_it_is_told_to_before_its_service_listens() -> None:
    assert subprocess.run([sys.executable, "-c", PROCESS_1], cwd=ROOT).returncode == 128 + signal.SIGTERM
    assert subprocess.run([sys.executable, "-c", PROCESS_1.replace(": 1", ": 2")], cwd=ROOT).returncode == 0
