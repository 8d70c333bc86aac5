"""The benchmark page: its sections are found and filled, and its pictures show what its tables say."""

from pathlib import Path

import pytest

from benchmarks.__main__ import COLLECTED, TRAINED
from benchmarks.page import fill, read_section
from benchmarks.plots import Bar, Panel, draw_rates, read_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"

TABLE = """| CartPole-v1, training | steps/s, median | min to max | ours, tuned is |
|---|---|---|---|
| ours, tuned | 901,320 | 844,645 to 932,379 |  |
| Sample Factory APPO, vector, 2 workers | 324,490 | 321,063 to 334,390 | 2.70 x (2.63 to 2.83) |

tuned: env-servers 1

| process | cores busy | where |
|---|---|---|
| env-0 | 0.20 | all of it |
"""


def test_a_table_is_read_as_it_is_written() -> None:
    peer = Bar("Sample Factory APPO, vector, 2 workers", 324490, 321063, 334390)
    ours = Bar("ours, tuned", 901320, 844645, 932379)
    assert read_table(TABLE) == Panel("CartPole-v1, training, steps/s", (ours, peer))


@pytest.mark.parametrize(
    "name", [*(f"collect {env_id}" for env_id in COLLECTED), *(f"train {env_id}" for env_id in TRAINED)]
)
def test_each_panel_has_a_table_on_the_page_that_can_be_drawn(name: str, tmp_path: Path) -> None:
    panel = read_table(read_section(PAGE.read_text(), name))
    assert {"ours, default", "ours, tuned", "limit, no messages"} <= {bar.name for bar in panel.bars}
    draw_rates([panel], tmp_path / "plots" / "plot.png")
    assert (tmp_path / "plots" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_filling_a_section_leaves_the_rest() -> None:
    page = "before\n<!-- one -->\nold\n<!-- end -->\nafter\n<!-- two -->\n<!-- end -->\n"
    filled = fill(page, "one", "new")
    assert filled == "before\n<!-- one -->\nnew\n<!-- end -->\nafter\n<!-- two -->\n<!-- end -->\n"
    assert read_section(filled, "one") == "new\n"
    with pytest.raises(ValueError, match="no section 'three'"):
        fill(page, "three", "new")
