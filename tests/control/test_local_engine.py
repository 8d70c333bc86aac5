"""The local engine on real processes: small programs stand in for the services."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from jobs import until

from common.config import Config, NetConfig
from common.errors import ConfigError, HeadraceError
from services.control.board import Board
from services.control.compose import Plan, Process, private_dir
from services.control.engines.local import DRAIN_S, KILLED, LocalEngine

FOREVER = "import time\nwhile True: time.sleep(60)"
DRAINS = """
import pathlib, signal, sys, time
def drain(*_):
    pathlib.Path({mark!r}).write_text("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
pathlib.Path({ready!r}).touch()
while True: time.sleep(0.05)  # Python may take a signal just before a sleep begins, and act on it after
"""
STUBBORN = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({ready!r}).touch()
while True: time.sleep(60)
"""


def make_plan(tmp_path: Path, **programs: str) -> Plan:
    """A plan whose processes run the given programs; those named learner… and so on have that role."""
    sockets = private_dir()
    (sockets / "act-0").touch()
    (tmp_path / "logs").mkdir()
    processes = [
        Process(
            name.replace("_", "-"),
            name.partition("_")[0],
            ("-c", text, f"job:{sockets}"),
            1,
            sockets / f"{name}.url",
            tmp_path / "logs" / f"{name}.log",
        )
        for name, text in programs.items()
    ]
    return Plan(Config(net=NetConfig(linger_s=0.2)), tmp_path, sockets, tuple(processes))


def left_behind(plan: Plan) -> list[psutil.Process]:
    """The processes of the plan's job that still run, the guardian included."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(plan.sockets) in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process)
    return found


def engine_of(plan: Plan) -> tuple[LocalEngine, Board]:
    board = Board()
    return LocalEngine(plan, board, os.environ), board


def nothing_left(plan: Plan) -> None:
    assert left_behind(plan) == []
    assert not plan.sockets.exists()


async def test_the_end_of_the_learner_ends_the_job_with_0(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, learner="print('done')", env_0=FOREVER)
    engine, _ = engine_of(plan)
    assert await engine.run() == 0
    assert not engine.interrupted
    assert (tmp_path / "logs" / "learner.log").read_text() == "done\n"
    nothing_left(plan)


async def test_a_killed_process_is_restarted_and_the_rest_is_not(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path, learner=DRAINS.format(mark=str(tmp_path / "m"), ready=str(tmp_path / "r")), env_0=FOREVER
    )
    engine, board = engine_of(plan)
    job = asyncio.create_task(engine.run())
    await until((tmp_path / "r").exists, "the learner starts")
    env, learner = board.processes["env-0"], board.processes["learner"]
    await until(lambda: env.pid, "env-0 starts")  # before, its pid is 0: that of this process's own group
    first, learner_pid = env.pid, learner.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: env.life == 2, "env-0 starts again")
    assert env.pid != first
    assert (env.restarts, learner.restarts, learner.pid) == (1, 0, learner_pid)
    assert f"env-0 (pid {first}) was killed by SIGKILL; restarting in 0.2 s (1)" in board.notices
    assert psutil.Process(env.pid).cmdline()[-2:] == ["--restarts", "1"]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await job == 0
    nothing_left(plan)


async def test_five_crashes_in_a_minute_end_the_job_and_show_the_end_of_the_log(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, learner=FOREVER, env_0="print('no such simulator', flush=True); raise SystemExit(7)")
    engine, board = engine_of(plan)
    with pytest.raises(HeadraceError, match="env-0 crashed 5 times") as caught:
        await engine.run()
    assert caught.value.exit_code == 1
    assert sum("restarting in" in notice for notice in board.notices) == 4
    assert board.notices[-1].count("  no such simulator") == 5
    assert "env-0" in board.notices[-1]
    nothing_left(plan)


@pytest.mark.parametrize(
    ("logged", "message", "remedy"),
    [
        ("12:00:00 E env-0: error: env.id=1 is wrong (write a name)", "env.id=1 is wrong", "write a name"),
        ("error: a (value 1) (mend it (or not))", "a (value 1)", "mend it (or not)"),
        ("error: cannot bind x(1)", "cannot bind x(1)", ""),
        ("unrecognized arguments: --x", "unrecognized arguments: --x", ""),
    ],
)
async def test_a_configuration_error_is_not_retried_and_passed_on_with_its_remedy(
    tmp_path: Path, logged: str, message: str, remedy: str
) -> None:
    plan = make_plan(tmp_path, learner=FOREVER, env_0=f"print({logged!r}); raise SystemExit(2)")
    engine, board = engine_of(plan)
    with pytest.raises(ConfigError) as caught:
        await engine.run()
    assert (caught.value.message, caught.value.remedy) == (f"env-0: {message}", remedy)
    assert board.processes["env-0"].life == 1
    nothing_left(plan)


async def test_a_service_that_leaves_a_running_job_is_started_again(tmp_path: Path) -> None:
    mark = tmp_path / "twice"
    program = f"import pathlib, time\np = pathlib.Path({str(mark)!r})\nif p.exists(): time.sleep(60)\np.touch()"
    plan = make_plan(tmp_path, learner=FOREVER, env_0=program)
    engine, board = engine_of(plan)
    job = asyncio.create_task(engine.run())
    await until(lambda: board.processes["env-0"].life == 2, "env-0 starts again")
    assert "though the job goes on" in board.notices[-1]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await job == 0


async def test_a_service_that_ends_long_before_the_learner_does_has_not_left_the_job(tmp_path: Path) -> None:
    result = str(tmp_path / "result.json")
    plan = make_plan(
        tmp_path,
        learner=f"import pathlib, time\npathlib.Path({result!r}).touch()\ntime.sleep(2)",  # ten times linger_s
        replay_0=f"import pathlib, time\nwhile not pathlib.Path({result!r}).exists(): time.sleep(0.01)",
    )
    engine, board = engine_of(plan)
    assert await engine.run() == 0
    assert list(board.notices) == []
    assert board.processes["replay-0"].life == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_one_signal_lets_the_learner_save_and_ends_with_0(tmp_path: Path, number: signal.Signals) -> None:
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    plan = make_plan(tmp_path, learner=DRAINS.format(mark=str(saved), ready=str(ready)), env_0=FOREVER)
    engine, _ = engine_of(plan)
    job = asyncio.create_task(engine.run())
    await until(ready.exists, "the learner starts")
    os.kill(os.getpid(), number)
    assert await job == 0
    assert engine.interrupted
    assert saved.read_text() == "saved"
    nothing_left(plan)


async def test_ctrl_c_twice_ends_a_stubborn_job_at_once_with_130(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    plan = make_plan(tmp_path, learner=STUBBORN.format(ready=str(ready)), env_0=FOREVER)
    engine, board = engine_of(plan)
    job = asyncio.create_task(engine.run())
    await until(ready.exists, "the learner starts")
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: any("Ctrl-C stops at once" in text for text in board.notices), "the first Ctrl-C is said aloud")
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(job, DRAIN_S / 2) == KILLED
    nothing_left(plan)


CONTROL = """
import asyncio, os, pathlib, sys
from common.config import Config
from services.control.board import Board
from services.control.compose import Plan, Process
from services.control.engines.local import LocalEngine
sockets, run = map(pathlib.Path, sys.argv[1:])
sleep = "import time; time.sleep(60)"
child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{sleep}', sys.argv[1]]); {sleep}"
processes = tuple(
    Process(name, name, ("-c", child, str(sockets)), 1, sockets / name, run / f"{name}.log")
    for name in ("learner", "env")
)
asyncio.run(LocalEngine(Plan(Config(), run, sockets, processes), Board(), os.environ).run())
"""


async def test_nothing_outlives_a_control_that_is_killed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    control = await asyncio.create_subprocess_exec(sys.executable, "-c", CONTROL, str(plan.sockets), str(tmp_path))
    # Control, its guardian, two services, and a child of each.
    await until(lambda: len(left_behind(plan)) == 6, "all are started")
    control.kill()
    await control.wait()
    await until(lambda: not left_behind(plan) and not plan.sockets.exists(), "the guardian cleans up")
