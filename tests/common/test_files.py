"""What a process that ends, or a disk that fills, in the middle of a small file leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from full_disk import files_of_at_most

from common.files import write_whole


def test_a_file_takes_the_place_of_the_one_before_it(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_whole(tmp_path / "config.yaml", text)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.yaml": "new"}


def test_a_file_that_finds_no_room_leaves_the_one_before_it_and_no_half(tmp_path: Path) -> None:
    write_whole(tmp_path / "config.yaml", "old")
    with files_of_at_most(5), pytest.raises(OSError, match="too large"):
        write_whole(tmp_path / "config.yaml", "new and longer")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.yaml": "old"}


def test_what_reads_a_file_that_is_being_replaced_sees_it_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "config.yaml", "old")
    with (tmp_path / "config.yaml").open() as before:
        write_whole(tmp_path / "config.yaml", "new")
        assert before.read() == "old"
