"""The configuration reference is what the models say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from common.config import known_keys

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_configuration.py"))


def test_the_page_is_the_generated_one(generator: dict[str, Any]) -> None:
    assert (DOCS / "configuration.md").read_text() == generator["page"](), "run python docs/make_configuration.py"


def test_the_page_has_every_key_that_a_config_takes(generator: dict[str, Any]) -> None:
    shown = set(re.findall(r"^\| `([^`]+)` \|", generator["page"](), re.MULTILINE))
    assert set(known_keys()) - {"network", "algorithm"} <= shown
    assert {"network.hidden", "algorithm.epochs", "algorithm.lam"} <= shown


def test_no_meaning_is_given_twice_or_for_a_key_that_is_gone(generator: dict[str, Any]) -> None:
    lines = [line for line in generator["page"]().splitlines() if line.startswith("| `")]
    for key, meaning in generator["MEANINGS"].items():
        assert any(line.startswith(f"| `{key}` |") and line.endswith(f"| {meaning} |") for line in lines), key
