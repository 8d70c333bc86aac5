"""The configuration reference is what the models say."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from common.config import Config
from common.rl.algorithms.td3 import DDPGConfig
from common.rl.networks import NetworkConfig
from common.rl.registry import ALGORITHMS
from services.env_server.backends.atari import AtariOptions
from services.env_server.backends.crafter import Options
from services.env_server.backends.null import NullConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_configuration.py"))


def test_the_page_is_the_generated_one(generator: dict[str, Any]) -> None:
    assert (DOCS / "configuration.md").read_text() == generator["page"](), "run python docs/make_configuration.py"


def keys_of(model: type[BaseModel], section: str) -> set[str]:
    """Every key that a section of that model takes, those of models within it included, by its JSON schema."""
    schema = model.model_json_schema()

    def walk(node: dict[str, Any], prefix: str) -> Iterator[str]:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for name, inner in node.get("properties", {}).items():
            yield f"{prefix}.{name}"
            yield from walk(inner, f"{prefix}.{name}")
        for inner in (*node.get("anyOf", ()), *node.get("allOf", ())):
            yield from walk(inner, prefix)
        if isinstance(named := node.get("additionalProperties"), dict):
            yield from walk(named, f"{prefix}.<name>")

    return set(walk(schema, section))


def sections() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """How a section's heading begins, and the keys of what section it shows by which model."""
    for name, info in Config.model_fields.items():
        if name not in ("network", "algorithm"):
            assert isinstance(info.annotation, type)
            yield f"`{name}`", name, info.annotation
    yield "`network`", "network", NetworkConfig
    for name, (path, _) in ALGORITHMS.items():
        module, _, attribute = path.partition(":")
        yield f"`{name}`", "algorithm", getattr(import_module(module), f"{attribute}Config")
    for env_id, model in (("ALE/", AtariOptions), ("CrafterReward-v1", Options), ("headrace/Null-v0", NullConfig)):
        yield f"`env.kwargs` of `{env_id}", "env.kwargs", model


@pytest.mark.parametrize(("heading", "section", "model"), [*sections()], ids=str)
def test_a_section_has_every_key_that_it_takes_and_no_other(
    generator: dict[str, Any], heading: str, section: str, model: type[BaseModel]
) -> None:
    parts = re.split(r"^##+ ", generator["page"](), flags=re.MULTILINE)
    (part,) = (part for part in parts if part.startswith(heading))
    assert set(re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE)) == keys_of(model, section)


def test_a_default_within_a_section_is_the_sections_own(generator: dict[str, Any]) -> None:
    found = {row.key: row.default for row in generator["rows"](DDPGConfig, "algorithm")}
    assert (found["algorithm.noise.scale"], found["algorithm.noise.kind"]) == ("0.2", '"ornstein_uhlenbeck"')


def test_no_meaning_is_given_twice_or_for_a_key_that_is_gone(generator: dict[str, Any]) -> None:
    lines = [line for line in generator["page"]().splitlines() if line.startswith("| `")]
    for key, meaning in generator["MEANINGS"].items():
        assert any(line.startswith(f"| `{key}` |") and line.endswith(f"| {meaning} |") for line in lines), key
