"""The scripts of `benchmarks/`: what is counted, and what they say where something cannot be measured."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jobs import PATIENCE_S

from benchmarks import __main__ as page
from benchmarks import memory, replay
from common.errors import HeadraceError
from common.messages import Batch, Insert


@pytest.mark.parametrize("only", [["nosuch"], ["wire", "nosuch"]])
def test_a_section_that_is_not_there_is_refused_before_anything_is_measured(
    only: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "sections", lambda *_: {"wire": SimpleNamespace(text=lambda: pytest.fail("measured"))})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", *only])
    with pytest.raises(SystemExit) as ended:
        page.main()
    assert ended.value.code == 2
    assert "--only nosuch" in capsys.readouterr().err


@pytest.mark.parametrize("error", [HeadraceError("no peer", "install it"), ValueError("no peer")])
def test_a_section_that_fails_says_why_and_leaves_the_others(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure() -> None:
        raise error

    assert not page.succeeds("wire", measure)
    assert page.succeeds("replay", lambda: None)
    assert capsys.readouterr().out.splitlines() == ["wire …", f"not measured, and left as it is: {error}", "replay …"]


# In a process of its own: the number of sockets is settled by the first one, of whichever test that was.
SECTIONS = """
import sys, zmq
from benchmarks import __main__ as page, connections

def first():
    zmq.Context.instance().socket(zmq.PAIR).close()

def second():
    sockets = [zmq.Context.instance().socket(zmq.PAIR) for _ in range(2 * max(connections.COUNTS) + 2)]
    print(len(sockets), "sockets")

page.write = lambda name, section: section()
page.sections = lambda *_: {"first": first, "second": second}
sys.argv = ["benchmarks", "--only", "first", "second"]
page.main()
"""


def test_a_section_after_one_that_had_a_socket_has_room_for_all_connections() -> None:
    ran = subprocess.run([sys.executable, "-c", SECTIONS], capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.stdout.splitlines() == ["first …", "second …", "1026 sockets"], ran.stderr


def test_a_job_too_short_for_its_memory_to_be_compared_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "watch", lambda _: ({"learner_server 0": [(0, 260.0), (900, 261.0)]}, 1000, 1.0))
    with pytest.raises(HeadraceError, match="--steps 1000"):
        memory.report(1000)


def test_a_watched_job_that_fails_leaves_the_other_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    job = SimpleNamespace(poll=lambda: 1, returncode=1)
    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(Popen=lambda *_, **__: job, DEVNULL=subprocess.DEVNULL))
    with pytest.raises(HeadraceError, match="exit code 1"):
        memory.report(1000)


class _Client:
    """Answers like a replay-server whose prioritized table is a slow one, and whose tables are new to the memory.

    Its clock goes on with each request, by what that costs: nothing here waits.
    """

    def __init__(self) -> None:
        self.inserts: list[str] = []
        self.now = 0.0

    async def welcome(self) -> Any:
        return SimpleNamespace(life=1)

    async def request(self, message: Any) -> Any:
        if isinstance(message, Insert):
            self.inserts += message.tables
            fresh = self.inserts.count(replay.UNIFORM) <= 4
            self.now += 0.2 if fresh or message.tables == (replay.PRIORITIZED,) else 0.0
        self.now += 0.05
        await asyncio.sleep(0)
        return Batch(0, 1, 1.0, 0, arrays={"keys": np.zeros(1)}) if isinstance(message, replay.Sample) else None

    def close(self) -> None: ...


async def test_the_service_and_the_core_are_timed_at_inserts_into_the_same_kind_of_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = _Client()
    monkeypatch.setattr(replay, "time", SimpleNamespace(perf_counter=lambda: client.now))
    monkeypatch.setattr(replay, "CAPACITY", 4 * replay.UNROLL * replay.ENVS)
    monkeypatch.setattr(replay, "connect", lambda *_, **__: client)
    monkeypatch.setattr(replay, "make_context", lambda *_, **__: SimpleNamespace(hello=lambda *_: None))
    monkeypatch.setattr(replay, "validate", lambda _: SimpleNamespace(net=SimpleNamespace(experience=["x"])))
    rates = await replay._ask({}, 0.1)
    # Both at a uniform table that has been full once: four inserts of 50 ms.
    assert rates["service"][replay.INSERT] == pytest.approx(replay.CAPACITY / 0.2)
