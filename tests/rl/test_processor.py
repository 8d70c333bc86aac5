from pathlib import Path

import pytest

from common.rl.processor import is_intel


@pytest.mark.parametrize(("vendor", "expected"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_a_processor_is_intels_where_the_system_says_so(tmp_path: Path, vendor: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert is_intel(tmp_path / "cpuinfo") is expected


def test_a_system_that_does_not_say_has_another_processor(tmp_path: Path) -> None:
    assert not is_intel(tmp_path / "cpuinfo")
