"""Tests marked `deploy` need programs that a developer's machine may lack: they run under `-m deploy` alone."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deploy: needs what `make test-deploy` installs")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # It imports kubernetes-validate, 100 MB that the dev extra leaves out.
    return True if collection_path.name == "test_kubernetes.py" and config.option.markexpr != "deploy" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr != "deploy":
        left_out = [item for item in items if item.get_closest_marker("deploy")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
