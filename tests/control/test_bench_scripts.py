"""The scripts of `benchmarks/`: what is counted, and what they say where something cannot be measured."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as page
from benchmarks import memory, replay
from common.errors import HeadraceError
from common.messages import Batch, Insert


@pytest.mark.parametrize("only", [["nosuch"], ["wire", "nosuch"]])
def test_a_section_that_is_not_there_is_refused_before_anything_is_measured(
    only: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "sections", lambda *_: {"wire": SimpleNamespace(text=lambda: pytest.fail("measured"))})
    monkeypatch.setattr(page.plots, "draw_files", lambda *_: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", *only])
    with pytest.raises(SystemExit) as ended:
        page.main()
    assert ended.value.code == 2
    assert "--only nosuch" in capsys.readouterr().err
