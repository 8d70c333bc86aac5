"""What a user sees of a job."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from common.config import StopConfig, load
from services.control.display import PlainView, job_of, line, make_view, panel
from services.control.monitor import ProcessRow, Snapshot
from services.control.train import summary
from services.control.words import clock, count, goal, percent, sparkline

JOB = job_of(load(None, ["stop.episode_return=475", "stop.steps=500000"], {}), Path("runs/x"))
SHOT = Snapshot(
    seconds=67.0,
    steps=87234.0,
    frames=348936.0,
    updates=85.0,
    episodes=812.0,
    steps_s=20134.0,
    frames_s=80536.0,
    trained_steps_s=19800.0,
    episode_return=231.42,
    episode_length=231.0,
    policy_lag=0.0,
    progress=0.487,
    eta_s=71.0,
    queues=(("acts", 0.0), ("inserts", 2.0)),
    bottleneck="learner",
    returns=(1.0, 2.0, 3.0),
    processes=(
        ProcessRow("learner", 4001, "ready", True, 0),
        ProcessRow("env-0", 4002, "died, restarting", False, 1),
    ),
)


def test_only_what_is_over_is_at_100_percent() -> None:
    assert [percent(share) for share in (0.0, 0.29, 0.9999, 1.0)] == ["0%", "29%", "99%", "100%"]


def plain() -> tuple[PlainView, io.StringIO]:
    out = io.StringIO()
    view = make_view(JOB, Console(file=out, width=60))
    assert isinstance(view, PlainView)
    return view, out


def test_a_plain_line_holds_every_figure_on_one_line() -> None:
    assert line(SHOT) == (
        "1 min 07 s   48%  return 231.4  steps 87.2k (20.1k/s, trained 19.8k/s)  frames 349k  lag 0  eta 1 min 11 s  "
        "busiest learner  env-0 died, restarting"
    )


def test_a_job_that_nothing_ends_has_no_percentage() -> None:
    endless = replace(SHOT, progress=None, eta_s=None)
    assert line(endless).startswith("1 min 07 s  return 231.4")
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(panel(JOB, endless))
    text = console.export_text()
    assert "%" not in text
    assert "1 min 07 s" in text


def test_plain_lines_come_every_five_seconds_and_notices_at_once() -> None:
    view, out = plain()
    for seconds in (0.0, 4.9, 5.0, 9.9):
        view.update(Snapshot(seconds=seconds))
    view.notice("env-0 (pid 7) was killed by SIGKILL; restarting in 0.2 s (1)")
    said = out.getvalue().splitlines()
    assert said[:2] == ["headrace ppo · CartPole-v1  run runs/x", "goal return 475, at most 500k steps"]
    assert [text.split()[0] for text in said[2:4]] == ["0", "5"]
    assert said[4].endswith("env-0 (pid 7) was killed by SIGKILL; restarting in 0.2 s (1)")
    assert len(said) == 5


def test_the_panel_shows_goal_figures_and_each_process() -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(panel(JOB, SHOT))
    text = console.export_text()
    for part in (
        "ppo · CartPole-v1",
        "48%",
        "1 min 07 s, 1 min 11 s left",
        "return 475 (now 231.4), at most 500k steps",
        "▁▅█",
        "20.1k steps/s  80.5k frames/s",
        "19.8k steps/s",
        "acts 0 · inserts 2",
        "busiest learner",
        "4002",
        "died, restarting",
        "runs/x",
    ):
        assert part in text, part


def test_of_many_processes_those_that_are_not_well_are_shown() -> None:
    rows = tuple(ProcessRow(f"env-{i}", i, "ready", True, 0) for i in range(40))
    rows += (ProcessRow("env-40", 40, "died, restarting", False, 1),)
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(panel(JOB, Snapshot(processes=rows)))
    text = console.export_text()
    assert "env-40" in text
    assert "and 25 more" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (999, "999"), (1000, "1k"), (87234, "87.2k"), (999_999, "1000k"), (2.5e6, "2.5M")],
)
def test_counts_are_short(value: float | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(6.6, "7 s"), (187, "3 min 07 s"), (7500, "2 h 05 min"), (59.7, "1 min 00 s")]
)
def test_clock_reads_like_speech(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_goal_names_every_limit() -> None:
    assert goal(StopConfig(steps=1000, frames=4000, seconds=90)) == "1k steps or 4k frames or 1 min 30 s"
    assert goal(StopConfig(episode_return=-200.0), -1234.56) == "return -200 (now -1234.6)"
    assert goal(StopConfig()) == "none: until Ctrl-C"


def test_sparkline_averages_what_does_not_fit() -> None:
    assert sparkline([0.0, 0.0, 7.0, 7.0], 2) == "▁█"
    assert sparkline([5.0, 5.0], 8) == "▁▁"
    assert sparkline([], 8) == ""


def test_summary_tells_what_to_do_next() -> None:
    ended = {"outcome": "solved", "steps": 87234, "updates": 85, "episode_return": 476.2}
    solved = "\n".join(summary(Path("runs/x"), ended, 9.1, False))
    assert "9 s · 87.2k steps · 85 updates · mean return 476.2" in solved
    assert "headrace evaluate runs/x" in solved
    stopped = "\n".join(summary(Path("runs/x"), {"outcome": "stopped"}, 9.1, True))
    assert "resume with: headrace train --resume runs/x" in stopped
