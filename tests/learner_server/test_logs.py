"""What is logged of a job while its disk is full, and after."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from full_disk import files_of_at_most

from common.config import validate
from common.service import make_context
from services.learner_server.logs.progress import Progress
from services.learner_server.record import Record
from services.learner_server.trainer import Update


def test_a_row_that_does_not_fit_leaves_no_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    progress = Progress(path)
    progress.append({"steps": 1, "episode_return": 0.5})
    with files_of_at_most(path.stat().st_size + 3), pytest.raises(OSError, match="too large"):
        progress.append({"steps": 22222, "episode_return": 1.5})
    progress.append({"steps": 3, "episode_return": 2.5})
    assert path.read_text().split() == ["steps,episode_return", "1,0.5", "3,2.5"]


def test_a_header_that_does_not_fit_comes_with_the_next_row(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.csv")
    with files_of_at_most(3), pytest.raises(OSError, match="too large"):
        progress.append({"steps": 1})
    progress.append({"steps": 2})
    assert (tmp_path / "progress.csv").read_text().split() == ["steps", "2"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_costs_rows_and_not_the_run(tmp_path: Path) -> None:
    context = make_context(validate({"learner": {"log_s": 1e-9}}), "learner")
    record, others = Record(context, tmp_path), set(threading.enumerate())
    record.account(Update({"loss": 0.1}, 10, 0.0, 0), 1, 0.1, 0)
    with files_of_at_most(0):
        for updates in (2, 3):
            record.account(Update({"loss": 0.1}, 10, 0.0, 0), updates, 0.1, 0)
    assert "make room there" in (context.health.notice or "")
    record.account(Update({"loss": 0.1}, 10, 0.0, 0), 4, 0.1, 0)
    record.finish("steps", 4)
    # TensorBoard's threads end with the error: what is said of them is this test's to ignore, and not the next one's.
    for thread in set(threading.enumerate()) - others:
        thread.join(10)
    rows = (tmp_path / "progress.csv").read_text().split()
    assert len(rows) == 4  # the header, updates 1 and 4, and the end's


def test_the_events_go_on_in_another_file(tmp_path: Path) -> None:
    context = make_context(validate({"learner": {"log_s": 1e-9}}), "learner")
    record = Record(context, tmp_path)
    (tmp_path / "tensorboard").write_text("a file in the folder's place")
    record.account(Update({"loss": 0.1}, 10, 0.0, 0), 1, 0.1, 0)
    assert "TensorBoard" in (context.health.notice or "")
    (tmp_path / "tensorboard").unlink()
    record.account(Update({"loss": 0.1}, 10, 0.0, 0), 2, 0.1, 0)
    record.finish("steps", 2)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 300


def test_a_result_that_finds_no_room_leaves_no_half_of_it(tmp_path: Path) -> None:
    record = Record(make_context(validate({}), "learner"), tmp_path)
    with files_of_at_most(10), pytest.raises(OSError, match="too large"):
        record.finish("steps", 2)
    assert [path.name for path in tmp_path.iterdir() if "result" in path.name] == []
