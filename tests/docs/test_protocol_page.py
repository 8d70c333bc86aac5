"""docs/protocol.md says what the code does: kinds, numbers, fields, types, limits and codes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from common import codec, errors, types
from common.messages import KINDS, PROTOCOL, Finished
from common.transport import server

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()
WORDS = {
    "int": "int",
    "float": "float",
    "str": "str",
    "dict[str, Any]": "map",
    "dict[str, Any] | None": "map or nil",
    "dict[str, float]": "map of floats",
    "tuple[str, ...]": "list of str",
    "tuple[tuple[str, int], ...]": "list of [str, int]",
}


def section(heading: str) -> str:
    """Gives the text under a heading, up to the next one of any level."""
    assert f"\n{heading}\n" in PAGE, f"no section {heading!r}"
    return re.split(r"\n#{2,3} ", PAGE.split(f"\n{heading}\n", 1)[1], maxsplit=1)[0]


def table(text: str, first: str) -> list[list[str]] | None:
    """Gives the rows of the table whose first column is called `first`, or None where there is none."""
    found = re.search(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n?)*)", text, re.MULTILINE)
    if found is None:
        return None
    lines = found.group(1).splitlines()
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_page_has_exactly_the_kinds_of_the_code_under_their_numbers() -> None:
    headings = re.findall(r"^### (\d+) (\w+)$", PAGE, re.MULTILINE)
    assert headings == [(str(number), kind.__name__) for number, kind in enumerate(KINDS)]


@pytest.mark.parametrize(("number", "kind"), list(enumerate(KINDS)), ids=[kind.__name__ for kind in KINDS])
def test_a_kind_has_exactly_its_fields_in_order_with_their_types(number: int, kind: type) -> None:
    text = section(f"### {number} {kind.__name__}")
    fields = [(f.name, WORDS[str(f.type)]) for f in dataclasses.fields(kind) if f.name != "arrays"]
    assert [(row[0], row[1]) for row in table(text, "field") or []] == fields
    assert (table(text, "array") is not None) == any(f.name == "arrays" for f in dataclasses.fields(kind))


def test_the_unroll_has_exactly_the_arrays_that_common_types_lists() -> None:
    listed = re.findall(r"^    (\S+) +\[", types.__doc__ or "", re.MULTILINE)
    assert [row[0] for row in table(section("## The unroll"), "array") or []] == listed
    assert len(listed) == 15


def test_the_envelope_is_the_codecs() -> None:
    assert tuple(row[0] for row in table(section("## Envelope"), "header entry") or []) == codec.Envelope._fields


def test_version_limits_and_dtypes_are_the_codes() -> None:
    assert f"Version **{PROTOCOL}**." in PAGE
    limits = [row[1].split()[0] for row in table(section("## Framing"), "limit") or []]
    assert limits == [str(codec.MAX_HEADER_BYTES), str(codec.MAX_LIST), str(codec.MAX_TEXT), str(codec.MAX_DIMENSIONS)]
    assert "A list may also have as many entries as its message has frames" in PAGE
    frames = codec.encode(
        Finished({str(i): np.zeros(0) for i in range(codec.MAX_LIST + 1)}), codec.Envelope(1, 2, 3, 1)
    )
    assert len(codec.decode(frames)[0].arrays) == codec.MAX_LIST + 1  # type: ignore[union-attr]
    named = re.search(r"as numpy writes them: (.*)\.$", PAGE, re.MULTILINE)
    assert named is not None
    assert set(named.group(1).replace("`", "").split()) == set(codec.DTYPES)
    assert f"gets a Wait every {server.WAIT_EVERY_S:g} s" in PAGE


def test_error_codes_are_those_that_a_server_answers_with() -> None:
    shown = {row[0] for row in table(section("## Error codes"), "code") or []}
    answered = {kind.code for kind in (errors.HeadraceError, errors.ConfigError, errors.ProtocolError, errors.Finished)}
    assert shown == answered | {"new_life", "replaced", "protocol_version"}
