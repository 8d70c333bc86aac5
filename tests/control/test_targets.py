"""Files that commands write, and names of clients, are refused before the work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.config import load
from common.errors import ConfigError
from services.control.keys import add_client, make_keys
from services.control.targets import check_target
from services.control.tune.command import tune_job


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")


@pytest.mark.parametrize(
    ("path", "said"),
    [("folder", "--out folder is a directory"), ("no/x.png", "--out no/x.png: there is no directory no")],
)
def test_a_place_that_can_take_no_file_is_named(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_target("--out", Path(path))


@pytest.mark.parametrize("path", ["new", "file", "folder/new"])
def test_a_file_that_is_there_or_can_be_is_taken_and_not_touched(path: str) -> None:
    check_target("--out", Path(path))
    assert Path("file").read_text() == "in the way"
    assert not Path("new").exists()


def test_tune_refuses_a_directory_before_it_measures() -> None:
    with pytest.raises(ConfigError, match="--output folder is a directory"):
        tune_job(load(None, (), {}), Path("folder"), 60.0, 1.0)


@pytest.mark.parametrize("folder", ["file", "file/keys"])
def test_a_folder_of_keys_that_cannot_be_is_named(folder: str) -> None:
    with pytest.raises(ConfigError, match=f"{folder} cannot hold keys"):
        make_keys(Path(folder))


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", "", "two words", "a\nb"])
def test_a_client_has_a_name_and_no_path(name: str) -> None:
    make_keys(Path("keys"))
    before = Path("keys/clients").read_text()
    with pytest.raises(ConfigError, match=r"--client .* is no name"):
        add_client(Path("keys"), name)
    assert Path("keys/clients").read_text() == before
    assert add_client(Path("keys"), "host-b.example") == Path("keys/host-b.example")
