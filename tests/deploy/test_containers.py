"""What containers rest on, as far as it needs no engine."""

from __future__ import annotations

import re

import yaml
from scraping import ROOT

PAGE = (ROOT / "docs" / "deploy.md").read_text()


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
