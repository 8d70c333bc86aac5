from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.errors import ConfigError
from services.control.compose import earlier_lives
from services.learner_server.checkpoint import Checkpoints, find, load_state
from services.learner_server.lock import claim


def state(n: int) -> dict[str, object]:
    return {"trainer": {"policy": {"w": torch.full((2,), float(n))}, "steps": n}, "list": [torch.tensor(n), None, 1.5]}


def test_what_is_saved_comes_back_with_its_tensors_in_place(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=3).save(state(4), updates=4, best=False)
    path = find(tmp_path)
    loaded = load_state(path)
    assert loaded["trainer"]["policy"]["w"].tolist() == [4.0, 4.0]
    assert loaded["trainer"]["steps"] == 4
    assert [float(loaded["list"][0]), *loaded["list"][1:]] == [4.0, None, 1.5]
    assert {p.name for p in path.iterdir()} == {"model.safetensors", "state.json"}


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for n in range(1, 6):
        checkpoints.save(state(n), updates=n, best=n == 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("0*")) == ["000000002", "000000004", "000000005"]
    assert find(tmp_path).name == "000000005"
    assert find(tmp_path, "best").name == "000000002"
    assert find(tmp_path, "000000004").name == "000000004"


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(1), updates=1, best=False)
    with pytest.raises(TypeError):
        checkpoints.save({"bad": object()}, updates=2, best=False)
    assert (tmp_path / "checkpoints" / ".000000002.partial").exists()
    again = Checkpoints(tmp_path, keep=2)
    assert not (tmp_path / "checkpoints" / ".000000002.partial").exists()
    latest = again.load_latest()
    assert latest is not None
    assert latest["trainer"]["steps"] == 1
    again.save(state(2), updates=2, best=False)
    assert find(tmp_path).name == "000000002"


def test_a_learner_that_went_back_writes_over_what_it_wrote_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for n in (1, 2, 1):
        checkpoints.save(state(10 * n), updates=n, best=False)
    assert find(tmp_path).name == "000000001"
    assert load_state(find(tmp_path))["trainer"]["steps"] == 10


def test_a_crash_between_moving_the_old_one_out_and_the_new_one_in_loses_neither(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=2).save(state(1), updates=1, best=False)
    folder = tmp_path / "checkpoints"
    (folder / "000000001").rename(folder / ".000000001.old")
    latest = Checkpoints(tmp_path, keep=2).load_latest()
    assert latest is not None
    assert latest["trainer"]["steps"] == 1
    assert not list(folder.glob(".*.old"))


def test_each_life_of_a_learner_has_a_higher_ordinal(tmp_path: Path) -> None:
    assert [Checkpoints(tmp_path, keep=1).next_ordinal() for _ in range(3)] == [1, 2, 3]


def test_a_checkpoint_that_is_not_there_is_refused_naming_those_that_are(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, keep=1).load_latest() is None
    Checkpoints(tmp_path, keep=1).save(state(3), updates=3, best=False)
    with pytest.raises(ConfigError, match=r"no checkpoint '7' \(it has 000000003\)"):
        find(tmp_path, "7")


@pytest.mark.parametrize("broken", ["state.json", "model.safetensors", "no state", "no model"])
def test_a_checkpoint_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, broken: str) -> None:
    Checkpoints(tmp_path, keep=1).save(state(1), updates=1, best=False)
    path = find(tmp_path)
    if broken.startswith("no"):
        (path / {"no state": "state.json", "no model": "model.safetensors"}[broken]).unlink()
    else:
        whole = (path / broken).read_bytes()
        (path / broken).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=rf"the checkpoint {path} cannot be read: .*restore it"):
        load_state(path)


@pytest.mark.parametrize(
    ("tree", "said"),
    [("[]", "'list' object has no"), ('{"a": {"@tensor": "gone"}}', "it has no 'gone'"), ("3", "'int' object has no")],
)
def test_a_state_that_is_json_but_no_checkpoints_is_an_error_that_names_it(
    tmp_path: Path, tree: str, said: str
) -> None:
    Checkpoints(tmp_path, keep=1).save(state(1), updates=1, best=False)
    path = find(tmp_path)
    (path / "state.json").write_text(tree)
    with pytest.raises(ConfigError, match=rf"the checkpoint {path} cannot be read: {said}.*restore it"):
        load_state(path)


@pytest.mark.parametrize("text", ["", "two", "-3", "1.5", "\x00\x00"])
def test_an_ordinal_that_is_none_is_an_error_that_names_its_file(tmp_path: Path, text: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / "ordinal").write_text(text)
    for ask in (checkpoints.next_ordinal, lambda: earlier_lives(tmp_path)):
        with pytest.raises(ConfigError, match=rf"{tmp_path}/ordinal holds .*write a number"):
            ask()
    (tmp_path / "ordinal").write_text("1000\n")
    assert checkpoints.next_ordinal() == 1001


def test_a_run_directory_is_one_learners_at_a_time(tmp_path: Path) -> None:
    with claim(tmp_path / "run"), pytest.raises(ConfigError, match=r"another learner writes to .*run.*stop it"):
        claim(tmp_path / "run")
    claim(tmp_path / "run").close()


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"the run directory .*file/run cannot be written: Not a directory .*--run-dir"
    ):
        claim(tmp_path / "file" / "run")
