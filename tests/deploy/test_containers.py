"""What containers rest on, as far as it needs no engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import yaml
from scraping import ROOT

from common.config import Config
from common.service import make_context, serve_http

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


def test_the_health_check_asks_the_service_itself_where_docker_sets_a_proxy() -> None:
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text().replace("\\\n", "")
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, re.MULTILINE)
    service = serve_http(make_context(Config(), "env"))
    words = [word.replace("9400", str(service.server_port)) for word in json.loads(check)]
    words[0] = sys.executable
    environ = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
    try:
        assert subprocess.run(words, env=environ, capture_output=True).returncode == 0
        service.shutdown()
        service.server_close()
        assert subprocess.run(words, env=environ, capture_output=True).returncode != 0
    finally:
        service.shutdown()
        service.server_close()
