"""The import rules, held by import-linter and by what a fresh interpreter really loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from services.control.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]


def loaded_with(module: str) -> set[str]:
    """The top-level packages in a fresh interpreter that imported `module`."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("role", ["env", "replay"])
def test_services_that_need_no_torch_do_not_load_it(role: str) -> None:
    loaded = loaded_with(f"services.{role}_server.server")
    assert "zmq" in loaded
    assert not loaded & {"torch", "safetensors", "typer", "rich", "matplotlib"}


def test_the_entry_point_loads_next_to_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"headrace": "services.control.entry:main"}
    assert not loaded_with("services.control.entry") & {"typer", "rich", "yaml", "pydantic", "numpy", "asyncio"}


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    assert not loaded_with("services.control.cli") & {"torch", "gymnasium", "matplotlib"}


def test_common_imports_nothing_by_itself() -> None:
    assert (ROOT / "common" / "__init__.py").read_text() == ""


def test_the_import_contracts_hold() -> None:
    run = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_what_the_packages_import_is_installed_without_the_development_tools() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name not in ("dev", "deploy"))]
    wanted = {re.split(r"[^\w-]", line)[0].lower() for group in groups for line in group}
    brought_by = packages_distributions()
    modules = set()
    for path in [*(ROOT / "common").rglob("*.py"), *(ROOT / "services").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    foreign = modules - sys.stdlib_module_names - {"common", "services"}
    assert {name for name in foreign if not wanted & {d.lower().replace("_", "-") for d in brought_by[name]}} == set()


def test_the_extras_of_what_a_command_may_miss_are_the_projects_own() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {re.split(r"[^\w-]", line)[0]: extra for extra in ("train", "cli") for line in extras[extra]}
    assert wanted | {"imageio_ffmpeg": "cli"} == EXTRAS


def test_what_is_to_be_read_in_an_afternoon_has_at_most_4000_lines() -> None:
    files = [*(ROOT / "common").glob("*.py"), *(ROOT / "common" / "transport").glob("*.py")]
    files += (ROOT / "services").glob("*_server/*.py")
    assert sum(bool(line.strip()) for path in files for line in path.read_text().splitlines()) <= 4000
