"""docs/algorithms.md says of each algorithm what the registry, the models, the overlays and the results say."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from benchmarks.results import JOBS, kept
from common.config import load
from common.rl.algorithms.base import OptimizerConfig
from common.rl.registry import ALGORITHMS, algorithm_class
from common.rl.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()
OVERLAYS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "defaults")
COMMANDS = re.findall(r"^headrace train (configs/.+)$", PAGE, re.MULTILINE)


def section(name: str) -> str:
    """Gives the text of an algorithm's section, the parts below it included."""
    heading = f"\n## `{name}`\n"
    assert heading in PAGE, f"no section of {name}"
    return re.split(r"\n## ", PAGE.split(heading, 1)[1], maxsplit=1)[0]


def table(first: str) -> dict[str, list[str]]:
    """Gives the table whose first column is called `first`, by algorithm."""
    rows = PAGE.split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {re.findall(r"`(\w+)`", row[0])[0]: row[1:] for row in cells}


def config_of(name: str) -> type[BaseModel]:
    kind = algorithm_class(name)
    model: type[BaseModel] = getattr(sys.modules[kind.__module__], f"{kind.__name__}Config")
    return model


def default_of(model: type[BaseModel], key: str) -> Any:
    """Gives the default of a dotted key; that of a part which is off is what it has once it is on."""
    name, _, rest = key.partition(".")
    info = model.model_fields[name]
    value = info.get_default(call_default_factory=True)
    if not rest:
        return value
    if isinstance(value, BaseModel):
        return getattr(value, rest)
    return default_of(next(part for part in get_args(info.annotation) if part is not type(None)), rest)


def overlay_rows(text: str) -> dict[str, str]:
    """Gives what the overlays' table says of each one's curve."""
    return dict(re.findall(r"^\| \[\w+\]\(\.\./configs/(\w+)\.yaml\) \|.*\| ([^|]+) \|$", text, re.MULTILINE))


def test_the_overview_has_exactly_the_registered_algorithms_and_what_they_train_on() -> None:
    found = {name: cells[2] for name, cells in table("name").items()}
    assert found == {name: algorithm_class(name).batches for name in ALGORITHMS}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_a_section_with_its_file_its_keys_and_a_command(name: str) -> None:
    text = section(name)
    module = ALGORITHMS[name][0].partition(":")[0].replace(".", "/")
    assert f"(../{module}.py)" in text
    assert f"(configuration.md#{name})" in text
    for part in ("**Table:**", "**Deviations.**", "\nheadrace train configs/"):
        assert part in text, part


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_defaults_of_an_algorithm_are_its_models(name: str) -> None:
    rows = re.findall(r"^\| `algorithm\.([\w.]+)` \| `(.*?)` \|", section(name), re.MULTILINE)
    assert rows
    model = config_of(name)
    assert dict(rows) == {key: json.dumps(default_of(model, key)) for key, _ in rows}


def test_the_defaults_of_curiosity_are_its_models() -> None:
    text = PAGE.split("\n## Curiosity\n", 1)[1].split("\n## ", 1)[0]
    rows = dict(re.findall(r"^\| `algorithm\.(curiosity[\w.]*)` \| `(.*?)` \|", text, re.MULTILINE))
    assert len(rows) == 6
    assert rows == {key: json.dumps(default_of(config_of("ppo"), key)) for key in rows}


def test_the_optimisers_are_those_of_the_modules() -> None:
    found = table("algorithm")
    assert list(found) == list(ALGORITHMS)
    for name, (kind, *numbers) in found.items():
        module = vars(sys.modules[algorithm_class(name).__module__])
        expected: OptimizerConfig = module.get(f"{name.upper()}_OPTIMIZER", module["DEFAULT_OPTIMIZER"])
        shown = [kind, *map(float, numbers)]
        assert shown == [expected.name, expected.lr, expected.eps, expected.max_grad_norm], name


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_stands_in_the_section_of_its_algorithm(path: Path) -> None:
    assert path.stem in overlay_rows(section(str(load(path, environ={}).algorithm["name"])))


def test_a_curve_is_shown_exactly_where_the_results_have_its_row() -> None:
    results = (ROOT / "docs" / "results.md").read_text()
    rows = overlay_rows(PAGE)
    assert rows
    for name, curve in rows.items():
        if f"configs/{name}.yaml" not in results:
            assert curve == "not measured yet", name
            continue
        pictures = {f"results-{job.plot}.png" for job in JOBS if name == (job.config or job.name) and kept(job)}
        assert curve in {f"[curve]({picture})" for picture in pictures}, name
        assert all((ROOT / "docs" / picture).exists() for picture in pictures), name


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_an_overlay_and_settings_that_its_algorithm_takes(command: str) -> None:
    path, *overrides = shlex.split(command)
    options = dict(load(ROOT / path, overrides, {}).algorithm)
    read_settings(config_of(str(options.pop("name"))), options, "algorithm")


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"\b(?:configs|common)/[a-z][\w/]*\.(?:yaml|py)\b", PAGE))
    assert len(named) > len(OVERLAYS)
    assert {path for path in named if not (ROOT / path).exists()} == set()
