"""Learning curves as PNG files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from common.config import load
from common.errors import ConfigError
from services.control.plot import plot_runs, read_curve

PROGRESS = """seconds,steps,frames,updates,trained_steps,episodes,episode_return,episode_length,policy_lag,policy_loss
1.0,1000,1000,1,1000,0,,,0,0.1
2.0,2000,2000,2,2000,9,22.5,22.5,0,0.1
3.0,4000,4000,4,4000,20,60.0,60.0,0,0.1
4.0,60
"""


def make_run(path: Path) -> Path:
    path.mkdir()
    (path / "progress.csv").write_text(PROGRESS)
    (path / "config.yaml").write_text(load(None, ["stop.episode_return=475"], {}).to_yaml())
    return path


def size(png: Path) -> tuple[int, int]:
    head = png.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_curve_leaves_out_rows_without_episodes_and_half_rows(tmp_path: Path) -> None:
    curve = read_curve(make_run(tmp_path / "run"))
    assert (curve.steps, curve.seconds, curve.returns) == ([2000.0, 4000.0], [2.0, 3.0], [22.5, 60.0])
    assert curve.goal == 475.0
    assert curve.name == "ppo on CartPole-v1 (run)"


@pytest.mark.parametrize(
    ("was", "bad", "said"), [("22.5,22.5", "soon,22.5", "line 3: .*'soon'"), ("steps,", "stairs,", "line 3: 'steps'")]
)
def test_a_log_that_is_none_is_named_with_its_line(tmp_path: Path, was: str, bad: str, said: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "progress.csv").write_text(PROGRESS.replace(was, bad, 1))
    with pytest.raises(ConfigError, match=rf"progress\.csv, {said}"):
        read_curve(run)


@pytest.mark.parametrize(
    ("out", "said"),
    [("no/x.png", "there is no directory"), ("x.foo", "a plot is a PNG"), ("x", "a plot is a PNG"), ("", "directory")],
)
def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path, out: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--out .*{said}"):
        plot_runs([make_run(tmp_path / "run")], tmp_path / out)


def test_one_run_gets_a_curve_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert plot_runs([run]) == run / "curve.png"
    assert size(run / "curve.png") == (1300, 572)


def test_several_runs_share_one_picture(tmp_path: Path) -> None:
    out = tmp_path / "both.png"
    assert plot_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b")], out) == out
    assert size(out) == (1300, 572)


def test_a_run_without_an_episode_yet_is_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early = make_run(tmp_path / "early")
    (early / "progress.csv").unlink()
    with pytest.raises(ConfigError, match=r"early has no finished episode yet \(train on, then plot\)"):
        plot_runs([early])
    out = tmp_path / "both.png"
    assert plot_runs([early, make_run(tmp_path / "a")], out) == out
    assert capsys.readouterr().err == f"left out: {early} has no finished episode yet\n"


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no progress\.csv"):
        plot_runs([tmp_path])


def test_seeds_of_a_job_are_known_by_the_last_number_of_their_names(tmp_path: Path) -> None:
    names = ("a2c-1", "a2c-12", "ppo-halfcheetah-v5-2", "run")
    assert [read_curve(make_run(tmp_path / name)).job for name in names] == ["a2c", "a2c", "ppo-halfcheetah-v5", "run"]
