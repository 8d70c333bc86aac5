"""A run's directory before, during and after one start of its job."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from full_disk import files_of_at_most
from jobs import PATIENCE_S

from common.config import load
from common.errors import ConfigError, HeadraceError
from services.control.board import Board, ProcessState
from services.control.readings import Reading
from services.control.run_dir import RunDir, new_run
from services.control.train import _run
from services.learner_server.lock import claim


def start(run: RunDir, error: Exception | None = None) -> None:
    with run:
        if error:
            raise error


def contents(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_a_run_has_its_config_from_the_start(tmp_path: Path) -> None:
    config = load(None, [f"run.dir={tmp_path}", "run.name=mine", "learner.lr=0.5"], {})
    with new_run(config) as run:
        assert run.path == tmp_path / "mine"
        assert load(run.path / "config.yaml", (), {}) == config


@pytest.mark.parametrize("left", ["checkpoints/latest", "progress.csv"])
def test_the_name_of_a_run_that_has_trained_is_taken(tmp_path: Path, left: str) -> None:
    path = tmp_path / "mine" / left
    path.parent.mkdir(parents=True)
    path.write_text("1")
    with pytest.raises(ConfigError, match=r"run\.name='mine'.* exists already"):
        new_run(load(None, [f"run.dir={tmp_path}", "run.name=mine"], {}))


def test_a_name_that_only_a_failed_start_has_used_is_free(tmp_path: Path) -> None:
    config = load(None, [f"run.dir={tmp_path}", "run.name=mine", "learner.lr=0.5"], {})
    run = new_run(config)
    (run.path / "lock").touch()
    with pytest.raises(HeadraceError):
        start(run, HeadraceError("crashed five times"))
    assert set(contents(tmp_path / "mine")) == {"config.yaml", "lock"}  # its logs would be there too
    with new_run(load(None, [f"run.dir={tmp_path}", "run.name=mine", "learner.lr=0.25"], {})) as run:
        assert load(run.path / "config.yaml", (), {}).learner.lr == 0.25


@pytest.mark.parametrize("name", [(), ("run.name=mine",)])
def test_a_refused_start_takes_the_directory_that_it_made_with_it(tmp_path: Path, name: tuple[str, ...]) -> None:
    run = new_run(load(None, [f"run.dir={tmp_path}", *name], {}))
    with pytest.raises(ConfigError):
        start(run, ConfigError("no such setting"))
    assert list(tmp_path.iterdir()) == []


def test_a_refused_start_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "lock").touch()
    run = new_run(load(None, [f"run.dir={tmp_path}", "run.name=mine"], {}))
    with pytest.raises(ConfigError):
        start(run, ConfigError("another job has the lock"))
    assert contents(tmp_path / "mine") == {"lock": ""}


@pytest.fixture
def old_run(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config.yaml").write_text(load(None, (), {}).to_yaml())
    (tmp_path / "result.json").write_text('{"outcome": "solved"}')
    return contents(tmp_path)


@pytest.mark.parametrize("error", [ConfigError("no such setting"), HeadraceError("crashed five times"), None])
def test_a_resume_that_comes_to_nothing_leaves_the_run_as_it_was(
    tmp_path: Path, old_run: dict[str, str], error: HeadraceError | None
) -> None:
    run = RunDir(tmp_path, load(None, ["learner.lr=0.5"], {}))
    try:
        with run:
            assert not (tmp_path / "result.json").exists()
            if isinstance(error, ConfigError):
                # A learner that was ready when another service refused is stopped in order.
                (tmp_path / "result.json").write_text('{"outcome": "stopped"}')
            if error:
                raise error
    except HeadraceError:
        pass
    assert contents(tmp_path) == old_run


def test_a_run_that_another_job_trains_is_refused_before_its_files_are_touched(
    tmp_path: Path, old_run: dict[str, str]
) -> None:
    with claim(tmp_path), pytest.raises(ConfigError, match="another learner writes to"):
        start(RunDir(tmp_path, load(None, ["learner.lr=0.5"], {})))
    assert contents(tmp_path) == old_run | {"lock": ""}


@pytest.mark.parametrize("error", [HeadraceError("crashed five times"), None])
def test_a_resume_that_has_begun_keeps_its_settings(
    tmp_path: Path, old_run: dict[str, str], error: HeadraceError | None
) -> None:
    config = load(None, ["learner.lr=0.5"], {})
    try:
        with RunDir(tmp_path, config) as run:
            run.begun = True
            if error:
                raise error
    except HeadraceError:
        pass
    assert contents(tmp_path) == {"config.yaml": config.to_yaml()}


async def test_the_first_update_begins_a_job(tmp_path: Path, old_run: dict[str, str]) -> None:
    config = load(None, (), {})

    class Engine:
        started = asyncio.Event()
        interrupted = False

        async def run(self) -> int:
            self.started.set()
            while not run.begun:
                await asyncio.sleep(0.01)
            return 0

    async def source(_: ProcessState) -> Reading:
        return Reading({"headrace_learner_updates_total": 1.0}, {"ready": True})

    board = Board({"learner": ProcessState("learner", "learner", "running")})
    with RunDir(tmp_path, config) as run:
        assert await asyncio.wait_for(_run(config, run, Engine(), board, source), PATIENCE_S) == 0


def test_a_resume_that_ends_before_it_was_seen_to_begin_keeps_its_settings(
    tmp_path: Path, old_run: dict[str, str]
) -> None:
    config = load(None, ["stop.seconds=0.01"], {})
    with RunDir(tmp_path, config):
        (tmp_path / "result.json").write_text('{"outcome": "seconds"}')
    assert contents(tmp_path) == {"config.yaml": config.to_yaml(), "result.json": '{"outcome": "seconds"}'}


def test_runs_without_a_name_never_share_a_directory(tmp_path: Path) -> None:
    config = load(None, [f"run.dir={tmp_path}", "env.id=ALE/Pong-v5"], {})
    runs = {new_run(config).path for _ in range(3)}
    assert len(runs) == 3
    assert all(run.name.startswith("ppo-Pong-v5-") for run in runs)


@pytest.mark.parametrize("name", [(), ("run.name=mine",)])
def test_a_place_that_cannot_take_a_run_is_named(tmp_path: Path, name: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("in the way")
    config = load(None, [f"run.dir={tmp_path}/file", *name], {})
    with pytest.raises(ConfigError, match=r"run\.dir='.*/file' cannot take the run: .*Not a directory"):
        new_run(config)


@pytest.mark.parametrize("name", [(), ("run.name=mine",)])
def test_a_disk_without_room_for_a_start_is_named_and_keeps_nothing_of_it(
    tmp_path: Path, name: tuple[str, ...]
) -> None:
    run = new_run(load(None, [f"run.dir={tmp_path}", *name], {}))
    with files_of_at_most(10), pytest.raises(ConfigError, match=r"cannot take the run: File too large .*with room"):
        start(run)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_a_resume_leaves_the_run_as_it_was(tmp_path: Path, old_run: dict[str, str]) -> None:
    with files_of_at_most(10), pytest.raises(ConfigError, match="File too large"):
        start(RunDir(tmp_path, load(None, ["learner.lr=0.5"], {})))
    assert contents(tmp_path) == old_run
