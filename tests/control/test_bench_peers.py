"""Peers beside ours, each at its best setting and in its turn, and what `make bench` writes on the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from jobs import until

from benchmarks import __main__ as benchmarks
from benchmarks import memory, page
from common.errors import HeadraceError
from services.control.bench import collect, peers
from services.control.bench.collect import interleave
from services.control.bench.report import Row


def install(peer: peers.Peer, home: Path, script: str) -> None:
    """Puts a script in a peer's place, to be run by this interpreter."""
    python = peers.python_of(peer, home)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    peers.marker_of(peer, home).touch()
    (home / f"{peer.name}_peer.py").write_text(script)


def test_a_peer_is_what_its_environment_and_script_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = peers.python_of(peers.PEERS[0], tmp_path)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    assert peers.installed(tmp_path) == []
    script = tmp_path / f"{peers.PEERS[0].name}_peer.py"
    script.write_text("import sys; print('noise'); print('{\"%s\": 12}' % sys.argv[1])")
    assert peers.installed(tmp_path) == []  # its virtual environment is made before what it needs is there
    peers.marker_of(peers.PEERS[0], tmp_path).touch()
    assert peers.installed(tmp_path) == [peers.PEERS[0]]
    assert peers.run(peers.PEERS[0], tmp_path, "CartPole-v1") == {"CartPole-v1": 12.0}
    script.write_text("raise SystemExit('it broke')")
    with pytest.raises(HeadraceError, match="sb3 CartPole-v1 failed"):
        peers.run(peers.PEERS[0], tmp_path, "CartPole-v1")
    script.write_text("import threading; threading.Event().wait()")
    monkeypatch.setattr(peers, "TIMEOUT_S", 0.5)
    with pytest.raises(HeadraceError, match="sb3 CartPole-v1 did not end within"):
        peers.run(peers.PEERS[0], tmp_path, "CartPole-v1")


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_of_a_script_that_is_ended_no_process_is_left() -> None:
    # As Sample Factory's: its job has a session of its own.
    script = (
        "import subprocess, sys\n"
        "wait = 'import threading; threading.Event().wait()'\n"
        "subprocess.Popen([sys.executable, '-c', wait], start_new_session=True).wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as running:
        await until(lambda: psutil.Process(running.pid).children(), "its job")
        [job] = psutil.Process(running.pid).children()
        peers.end_family(running.pid)
        await until(lambda: ended(job), "the job's end")


def test_peers_take_turns_at_their_best_setting_and_one_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    log = tmp_path / "log"
    # The rate of a setting is how often the peer was run, and ten times that of the second.
    installed = (
        "import json, sys\n"
        f"log = open({str(log)!r}, 'a+'); print(*sys.argv[1:], file=log); log.seek(0)\n"
        "n = len(log.readlines())\n"
        "print(json.dumps({s: n * (10 if s == 'b' else 1) for s in sys.argv[3:] or ('a', 'b')}))\n"
    )
    install(peers.PEERS[0], tmp_path, installed)
    install(peers.PEERS[1], tmp_path, "raise SystemExit('no sweep')")
    # This one's sweep goes well, and its first turn does not.
    install(peers.PEERS[2], tmp_path, "import sys; assert len(sys.argv) == 3; print('{\"x\": 7}')")
    found = peers.beside(peers.PEERS[:3], tmp_path, "CartPole-v1", 8.0, lambda text: None)
    subjects = {"ours": lambda: float(len(log.read_text().splitlines())), **found.measures}
    rates = interleave(subjects, 2, lambda text: None)
    titles = [peer.title for peer in peers.PEERS[:3]]
    assert log.read_text().splitlines() == ["CartPole-v1 2.0", "CartPole-v1 8.0 b", "CartPole-v1 8.0 b"]
    assert rates["ours"] == (1.0, 2.0)
    rows = collect.rows_of(rates, {"ours": {"env": 1}}, found)
    assert rows == (
        Row("ours", (1.0, 2.0), {"env": 1}),
        Row(f"{titles[0]}, b", (20.0, 30.0), {"each setting": {"a": 1.0, "b": 10.0}}),
    )
    assert [note.partition(":")[0] for note in found.failed.values()] == [
        f"{titles[1]} is missing",
        f"{titles[2]}, x is missing",
    ]


def test_a_section_of_the_page_says_when_and_how_it_was_measured_and_who_was_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "HOME", tmp_path)
    install(peers.PEERS[0], tmp_path, "")
    section = benchmarks.Section(lambda: "| a table |", page.repetitions(5, 8.0), peers.PEERS[:2])
    lines = section.text().splitlines()
    assert lines[:2] == ["| a table |", ""]
    said = rf"Measured on \d+ \w+ \d{{4}} on {os.cpu_count()} cores of .+, 5 repetitions of 8 s\."
    assert re.fullmatch(rf"{said} Not installed there, and so missing: {peers.PEERS[1].title}\.", lines[2])


def test_every_section_that_is_measured_has_its_place_on_the_page() -> None:
    text = benchmarks.PAGE.read_text()
    for name in benchmarks.sections(8.0, 5):
        assert page.fill(text, name, "")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("python -m services.env_server --config c.yaml --index 1", "env_server 1"),
        ("python -m services.learner_server --config c.yaml --index 0 --run-dir r", "learner_server 0"),
        ("python -m services.control.cli train c.yaml", "headrace train"),
        ("python -I -S /x/services/control/engines/guardian.py /tmp/hr-1", "guardian"),
        ("python -c from multiprocessing.resource_tracker import main", ""),
    ],
)
def test_each_process_of_a_job_has_a_name_of_its_own_in_the_table_of_memory(line: str, name: str) -> None:
    assert memory.name_of(line.split()) == name
