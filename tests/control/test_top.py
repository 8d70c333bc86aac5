"""`headrace top`: a job is found and shown from its services' own metrics."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from jobs import ENVIRON, PATIENCE_S, Job, until
from rich.console import Console

from common.config import Config, StopConfig
from common.errors import ConfigError, HeadraceError
from common.metrics import LearnerMetrics
from common.service import Context, make_context, serve_http
from services.control.board import Board
from services.control.compose import private_dirs
from services.control.readings import Reading
from services.control.top import Targets, announced, job_seen, local_job, named, watch


@contextmanager
def serving(context: Context) -> Iterator[str]:
    """Gives the address at which a service without any work answers."""
    server = serve_http(context)
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def learner() -> Context:
    context = make_context(Config(), "learner", restarts=2)
    metrics = LearnerMetrics(context.registry)
    metrics.job.labels("ppo", 'Maze\\ "big"', "runs/x").set(1)
    metrics.stop.labels("steps").set(120000)
    metrics.stop.labels("episode_return").set(475)
    metrics.env_steps.set(1234)
    return context


async def test_a_job_says_itself_what_it_is_and_what_ends_it() -> None:
    board = Board()
    with serving(learner()) as url:
        targets = Targets(named([url]), board)
        await targets.find()
        state = board.processes["learner"]
        assert await targets.source(state) is not None
    job = job_seen(targets.learner)
    assert (job.title, job.run) == ('ppo · Maze\\ "big"', "runs/x")
    assert job.stop == StopConfig(steps=120000, episode_return=475)
    assert (state.role, state.pid, state.restarts) == ("learner", os.getpid(), 2)


def test_without_a_learner_the_goal_is_not_known() -> None:
    for reading in (None, Reading()):
        assert job_seen(reading).goal() == "-"


async def test_services_come_and_go_with_their_addresses() -> None:
    board = Board()
    urls: list[str] = []

    async def addresses() -> list[str]:
        return list(urls)

    with ExitStack() as stack:
        urls += [stack.enter_context(serving(make_context(Config(), "env", index=index))) for index in (0, 1)]
        targets = Targets(addresses, board)
        await targets.find()
        assert sorted(board.processes) == ["env-0", "env-1"]
        del urls[0]
        await targets.find()
        assert sorted(board.processes) == ["env-1"]


async def test_two_services_of_one_name_are_two_rows() -> None:
    board = Board()
    with serving(make_context(Config(), "env")) as one, serving(make_context(Config(), "env")) as two:
        targets = Targets(named([one, two]), board)
        await targets.find()
        assert set(board.processes) == {"env-0", f"env-0 {two.removeprefix('http://')}"}
        assert all([await targets.source(state) for state in board.processes.values()])


async def test_a_target_may_be_a_name_without_a_port() -> None:
    assert await named(["localhost"])() == ["http://127.0.0.1:9400"]
    assert await named(["http://localhost:81", "127.0.0.1:81"])() == ["http://127.0.0.1:81"]
    assert await named(["no-such-host.invalid"])() == []


@pytest.mark.parametrize("target", ["http://:9400", "localhost:http", "http://["])
def test_a_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="--targets"):
        named([target])


async def test_the_newest_local_job_that_answers_is_found(tmp_path: Path) -> None:
    with serving(learner()) as url:
        for age, (name, text) in enumerate((("headrace-dead", "http://127.0.0.1:9"), ("headrace-live", url))):
            (tmp_path / name).mkdir()
            (tmp_path / name / "learner.url").write_text(text)
            os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
        (tmp_path / "other").mkdir()
        directories = private_dirs(tmp_path)
        assert [path.name for path in directories] == ["headrace-dead", "headrace-live"]
        assert await (await local_job(directories))() == [url]
    with pytest.raises(HeadraceError, match="no job of yours"):
        await local_job(directories)


async def test_watching_ends_when_the_job_is_gone(tmp_path: Path) -> None:
    out = io.StringIO()
    with serving(learner()) as url:
        (tmp_path / "learner.url").write_text(url)
        watching = asyncio.create_task(watch(announced(tmp_path), Console(file=out, width=200), asyncio.Event()))
        await until(lambda: "steps 1.23k" in out.getvalue(), "a line of figures")
        (tmp_path / "learner.url").unlink()
        assert await asyncio.wait_for(watching, PATIENCE_S) == 0
    assert "goal return 475, at most 120k steps" in out.getvalue()
    assert out.getvalue().endswith("the job has ended: none of its services answers any more\n")


def top(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.control.cli", "top", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRON,
    )


async def test_a_real_job_is_shown_until_ctrl_c(tmp_path: Path) -> None:
    overrides = ["stop.episode_return=null", "stop.steps=0", "stop.seconds=100"]
    with Job(Path("configs/cartpole_ppo.yaml").resolve(), tmp_path / "job", overrides) as job:
        await until(lambda: job.updates() > 3, "updates")
        logs = [path.read_text() for path in (tmp_path / "job" / "logs").iterdir()]
        urls = [text.partition("metrics on ")[2].split("/metrics")[0] for text in logs]
        watcher = top("--targets", ",".join(urls))
        try:
            assert watcher.stdout is not None
            said = [await asyncio.to_thread(watcher.stdout.readline) for _ in range(3)]
        finally:
            watcher.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(watcher.wait, PATIENCE_S) == 0
            watcher.stdout.close()
    assert said[0] == f"headrace ppo · CartPole-v1  run {tmp_path / 'job'}\n"
    assert said[1] == "goal 1 min 40 s\n"
    assert "trained" in said[2]


def test_silent_targets_are_named() -> None:
    with top("--targets", "http://127.0.0.1:9") as watcher:
        try:
            out, _ = watcher.communicate(timeout=PATIENCE_S)
        finally:
            watcher.kill()
    assert watcher.returncode == 1
    assert out.startswith("error: nothing answers at http://127.0.0.1:9\nremedy: ")
