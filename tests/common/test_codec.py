import contextlib
import dataclasses
import tracemalloc
import typing
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from common.codec import DTYPES, MAX_LIST, Envelope, contiguous, decode, encode, nbytes
from common.errors import ProtocolError
from common.messages import KINDS, Act, Actions, Batch, Error, Hello, Insert, Message, Ok, Weights, Welcome
from common.types import Arrays

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
# The wire is UTF-8: a lone surrogate is no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOAT = st.floats(allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | INT64 | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MAPPING = st.dictionaries(TEXT, JSON, max_size=3)
ARRAYS = st.dictionaries(
    TEXT,
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda dtype: nps.arrays(np.dtype(dtype), nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    max_size=4,
)
FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    int: INT64,
    float: FLOAT,
    str: TEXT,
    dict[str, Any]: MAPPING,
    dict[str, Any] | None: st.none() | MAPPING,
    dict[str, float]: st.dictionaries(TEXT, FLOAT, max_size=3),
    tuple[str, ...]: st.lists(TEXT, max_size=3).map(tuple),
    tuple[tuple[str, int], ...]: st.lists(st.tuples(TEXT, INT64), max_size=3).map(tuple),
    Arrays: ARRAYS,
}


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{field.name: FIELDS[hints[field.name]] for field in dataclasses.fields(kind)})


MESSAGE = st.sampled_from(KINDS).flatmap(messages_of)
ENVELOPE = st.builds(Envelope, INT64, INT64, INT64, INT64)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


ENVELOPE_1 = Envelope(1, 2, 3, 1)


def wire(message: Message, envelope: Envelope = ENVELOPE_1) -> list[bytes]:
    """Gives the frames as the other side receives them."""
    return [memoryview(frame).tobytes() for frame in encode(message, envelope)]


def header(kind: Any = 3, *, fields: Any = (1,), arrays: Any = (), envelope: Any = (1, 2, 3, 1)) -> bytes:
    packed: bytes = msgpack.packb([kind, *envelope, fields, arrays])
    return packed


def declares(name: Any, dtype: Any, shape: Any, frame: bytes) -> list[bytes]:
    return [header(arrays=[[name, dtype, shape]]), frame]


def fields_of(message: Message) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(message)]
    return {name: getattr(message, name) for name in names if name != "arrays"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(FAST, max_examples=25)
@given(data=st.data(), envelope=ENVELOPE)
def test_every_message_comes_back_as_it_went(kind: type[Message], data: st.DataObject, envelope: Envelope) -> None:
    message = data.draw(messages_of(kind))
    again, way = decode(wire(message, envelope))
    assert way == envelope
    assert type(again) is kind
    assert fields_of(again) == fields_of(message)
    sent, came = getattr(message, "arrays", {}), getattr(again, "arrays", {})
    assert list(came) == list(sent)
    for name, array in sent.items():
        assert (came[name].dtype, came[name].shape) == (array.dtype, array.shape)
        assert came[name].tobytes() == array.tobytes()


def test_a_big_endian_array_arrives_with_the_same_values_and_shape() -> None:
    arrays = {"scalar": np.array(3, ">i4"), "rows": np.arange(6, dtype=">f8").reshape(2, 3)}
    (message, _) = decode(wire(Actions(0, arrays)))
    assert isinstance(message, Actions)
    assert message.arrays["scalar"].shape == ()
    assert message.arrays["scalar"] == 3
    assert message.arrays["rows"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_only_what_is_not_contiguous_is_copied_when_sent() -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert contiguous(whole) is whole
    assert contiguous(whole[:, 1]).tolist() == [1.0, 5.0, 9.0]
    assert encode(Actions(0, {"a": whole}), Envelope(1, 2, 3, 1))[1] is whole


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.zeros(1, np.complex64), np.zeros(1, "M8[s]")])
def test_an_array_that_is_not_of_plain_numbers_cannot_be_sent(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        encode(Actions(0, {"a": array}), Envelope(1, 2, 3, 1))


def test_a_batch_of_as_many_arrays_as_its_header_can_name_comes_back() -> None:
    arrays = {f"{i}/{j}": np.full(1, i, np.int32) for i in range(700) for j in range(14)}
    message, _ = decode(wire(Batch(700, 0, 0.0, 0, (), arrays)))
    assert isinstance(message, Batch)
    assert list(message.arrays) == list(arrays)
    assert message.arrays["699/13"].tolist() == [699]


TOO_MUCH = {
    "a longer list": (Batch(1, 1, 0.0, 0, ("x",) * (MAX_LIST + 1)), r"Batch .*max_array_len\(4096\)"),
    "a longer list in a map": (Welcome(1, 2, {"n": [1] * (MAX_LIST + 1)}), r"Welcome .*max_array_len\(4096\)"),
    "a larger map": (Welcome(1, 2, {str(i): i for i in range(MAX_LIST + 1)}), r"Welcome .*max_map_len\(4096\)"),
    "a longer text": (Error("config", "x" * 65_537), r"Error .*max_str_len\(65536\)"),
    "a longer name": (Actions(0, {"x" * 65_537: np.zeros(1)}), r"Actions .*max_str_len\(65536\)"),
    "more dimensions": (Actions(0, {"a": np.zeros((1,) * 17)}), "Actions .*more than 16 dimensions"),
    "a larger header": (Batch(1, 1, 0.0, 0, ("x" * 60_000,) * 18), "Batch .*more than 1048576"),
}


@pytest.mark.parametrize(("message", "text"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_what_no_receiver_would_take_is_not_sent(message: Message, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        encode(message, ENVELOPE_1)


def test_what_is_just_within_the_limits_comes_back() -> None:
    message = Error("config", "x" * 65_536)
    assert decode(wire(message))[0] == message
    missing = Batch(1, 1, 0.0, 0, ("x",) * MAX_LIST)
    assert decode(wire(missing))[0] == missing
    (deep, _) = decode(wire(Actions(0, {"a": np.zeros((1,) * 16)})))
    assert isinstance(deep, Actions)
    assert deep.arrays["a"].shape == (1,) * 16


def test_received_arrays_are_read_only_views_of_their_frames() -> None:
    sent = np.arange(1000, dtype=np.float64)
    frames = [bytearray(frame) for frame in wire(Actions(0, {"a": sent}))]
    message, _ = decode(frames)
    assert isinstance(message, Actions)
    received = message.arrays["a"]
    assert np.shares_memory(received, np.frombuffer(frames[1], np.float64))
    assert not received.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        received[0] = 1.0


def test_the_size_of_frames_counts_arrays_and_bytes() -> None:
    assert nbytes([b"abc", np.zeros((2, 3), np.float32)]) == 27


@settings(FAST, max_examples=400)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes_at_all_give_a_message_or_a_protocol_error(frames: list[bytes]) -> None:
    with contextlib.suppress(ProtocolError):
        decode(frames)


@settings(FAST, max_examples=300)
@given(JSON | st.lists(JSON, min_size=7, max_size=7), st.lists(st.binary(max_size=8), max_size=2))
def test_any_header_of_msgpack_gives_a_message_or_a_protocol_error(value: Any, arrays: list[bytes]) -> None:
    with contextlib.suppress(ProtocolError):
        decode([msgpack.packb(value), *arrays])


@settings(FAST, max_examples=300)
@given(st.integers(0, 17), st.lists(JSON, max_size=8), st.lists(st.lists(JSON, min_size=3, max_size=3), max_size=2))
def test_any_fields_under_a_good_envelope_give_a_message_or_a_protocol_error(
    kind: int, fields: list[Any], specs: list[Any]
) -> None:
    with contextlib.suppress(ProtocolError):
        decode([header(kind, fields=fields, arrays=specs), *[b"\0\0\0\0"] * len(specs)])


@settings(FAST, max_examples=400)
@given(MESSAGE, MESSAGE, st.data())
def test_a_damaged_message_gives_a_message_or_a_protocol_error(
    good: Message, other: Message, data: st.DataObject
) -> None:
    frames = wire(good)
    which = data.draw(st.integers(0, len(frames) - 1))
    frame = bytearray(frames[which])
    damage = data.draw(st.sampled_from(["flip", "truncate", "extend", "swap header", "lose frame", "add frame"]))
    if damage == "flip" and frame:
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    elif damage == "truncate":
        del frame[data.draw(st.integers(0, len(frame))) :]
    elif damage == "extend":
        frame += data.draw(st.binary(min_size=1, max_size=20))
    frames[which] = bytes(frame)
    if damage == "swap header":
        frames[0] = wire(other)[0]
    elif damage == "lose frame":
        del frames[which]
    elif damage == "add frame":
        frames.insert(which, data.draw(st.binary(max_size=20)))
    with contextlib.suppress(ProtocolError):
        decode(frames)


HOSTILE = {
    "no frames": [],
    "an empty header": [b""],
    "a header of 2 MiB": [b"\0" * (1 << 21)],
    "a number": [msgpack.packb(7)],
    "bytes of the right length": [msgpack.packb(b"\0" * 7)],
    "text of the right length": [msgpack.packb("abcdefg")],
    "a mapping of the right length": [msgpack.packb(dict.fromkeys("abcdefg"))],
    "six items": [msgpack.packb([14, 1, 2, 3, 1, []])],
    "bytes after the header": [header(14, fields=[]) + b"\0"],
    "a list that claims 2**32 items": [b"\xdd\xff\xff\xff\xff"],
    "a mapping that claims 2**32 items": [b"\xdf\xff\xff\xff\xff"],
    "text that claims 2**32 bytes": [b"\xdb\xff\xff\xff\xff"],
    "lists in lists in lists": [b"\x91" * 5000 + b"\x90"],
    "deep lists as kind": [header(0)[:1] + b"\x91" * 1000 + b"\x90" + header(0)[2:]],
    "deep lists as a field": [header(3, fields=[1])[:-3] + b"\x91" + b"\x91" * 1000 + b"\x90" + b"\x90"],
    "deep lists as an array": [header(3)[:-1] + b"\x91" + b"\x91" * 1000 + b"\x90", b""],
    "deep lists after the header": [header(14, fields=[]) + b"\x91" * 1000 + b"\x90"],
    "invalid UTF-8": [b"\x97\x10\x01\x02\x03\x01\x93\xa1\xff\xa0\xa0\x90"],
    "an extension type without data": [b"\x97\x0b\x01\x02\x03\x01\x91\xc7\x00\x05\x90"],
    "an extension type in a mapping": [
        msgpack.packb([0, 1, 2, 3, 1, [1, "env", "e", 1, {"a": msgpack.ExtType(5, b"")}, []], []])
    ],
    "a timestamp": [msgpack.packb([11, 1, 2, 3, 1, [msgpack.Timestamp(1)], []])],
    "bytes for keys": [msgpack.packb([0, 1, 2, 3, 1, [1, "env", "e", 1, {b"a": 1}, []], []])],
    "numbers for keys": [msgpack.packb([0, 1, 2, 3, 1, [1, "env", "e", 1, {1: 1}, []], []])],
    "a kind out of range": [header(len(KINDS), fields=[])],
    "a negative kind": [header(-1, fields=[])],
    "a kind that is no number": [header("Ok", fields=[])],
    "a truth value for a kind": [header(True)],
    "a request number over 64 bits": [header(14, fields=[], envelope=(1 << 63, 2, 3, 1))],
    "a life that is no number": [header(14, fields=[], envelope=(1, "me", 3, 1))],
    "a field over 64 bits": [header(11, fields=[1 << 63])],
    "a stream's life over 64 bits": [header(0, fields=[1, "env", "e", 1, None, [["e/0", (1 << 64) - 1]]])],
    "a truth value for a number": [header(11, fields=[True])],
    "text for a number": [header(11, fields=["1"])],
    "too few fields": [header(11, fields=[])],
    "too many fields": [header(11, fields=[1, 2])],
    "fields that are no list": [header(11, fields={"version": 1})],
    "a list longer than its frames": [header(3, arrays=[["a", "|u1", [0]]] * 5000), *[b""] * 4998],
    "a list longer than any": [msgpack.packb([7, 1, 2, 3, 1, [1, 1, 0.0, 0, ["x"] * 5000], []])],
    "text longer than any": [header(16, fields=["x" * 70_000, "", ""])],
    "arrays for a kind that has none": [header(14, fields=[], arrays=[["a", "<f4", [0]]]), b""],
    "frames without a declaration": [header(), b"abcd"],
    "a declaration without a frame": [header(arrays=[["a", "<f4", [1]]])],
    "declarations that are no list": [header(arrays={"a": 1}), b""],
    "the same array twice": [header(arrays=[["a", "|u1", [1]], ["a", "|u1", [1]]]), b"1", b"2"],
    "objects": declares("a", "|O", [1], b"\0" * 8),
    "text for elements": declares("a", "<U1", [1], b"\0" * 4),
    "big-endian elements": declares("a", ">f4", [1], b"\0" * 4),
    "a dtype that is none": declares("a", "float and a half", [1], b"\0" * 4),
    "a dtype that is a list": declares("a", ["<f4"], [1], b"\0" * 4),
    "a name that is no text": declares(1, "<f4", [1], b"\0" * 4),
    "a frame too small": declares("a", "<f4", [2], b"\0" * 7),
    "a frame too large": declares("a", "<f4", [2], b"\0" * 9),
    "a shape that overflows to the right size": declares("a", "|u1", [1 << 32, 1 << 32], b""),
    "a shape beyond memory": declares("a", "<f8", [1 << 40], b"\0" * 8),
    "a negative dimension": declares("a", "<f4", [-1], b"\0" * 4),
    "two negative dimensions": declares("a", "<f4", [-1, -1], b"\0" * 4),
    "nothing of very much": declares("a", "<f4", [0, (1 << 64) - 1], b""),
    "a dimension that is true": declares("a", "<f4", [True], b"\0" * 4),
    "a dimension that is no whole number": declares("a", "<f4", [1.0], b"\0" * 4),
    "a dimension that is a list": declares("a", "<f4", [[1]], b"\0" * 4),
    "seventeen dimensions": declares("a", "<f4", [1] * 17, b"\0" * 4),
    "a shape of bytes": declares("a", "<f4", b"\1", b"\0" * 4),
    "a shape that is empty text": declares("a", "<f4", "", b"\0" * 4),
    "a shape that is empty bytes": declares("a", "<f4", b"", b"\0" * 4),
    "a shape that is a number": declares("a", "<f4", 1, b"\0" * 4),
    "a declaration of two words": [header(arrays=[["a", "<f4"]]), b"\0" * 4],
}


@pytest.mark.parametrize("frames", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_message_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(frames)


def bombs() -> dict[str, list[bytes]]:
    huge = [1 << 20, 1 << 20]
    return {
        "lists that claim 4096 items in lists that do": [b"\xdc\x10\x00" * 1000],
        "lists that claim as many items as there are frames": [b"\xdc\x27\x10" * 1000, *[b""] * 9999],
        "lists that claim 2**32 items in lists that do": [b"\xdd\xff\xff\xff\xff" * 600],
        "mappings that claim 4096 items": [b"\xde\x10\x00\xa1a" * 600],
        "a declared terabyte": declares("a", "<f4", huge, b"\0" * 64),
        "text that claims 64 KiB, many times": [b"\x97" + b"\xda\xff\xff" * 300],
        "a true but empty list, many times": [msgpack.packb([[] for _ in range(2000)])],
    }


@pytest.mark.parametrize("frames", bombs().values(), ids=bombs().keys())
def test_a_refused_message_costs_little_more_memory_than_it_brought(frames: list[bytes]) -> None:
    with contextlib.suppress(ProtocolError):
        decode(frames)  # once, so that what Python and msgpack keep for good is not counted
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(frames)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # An empty list is one byte on the wire and 64 in memory; nothing that msgpack can say has a worse ratio.
    assert peak < 64_000 + 100 * sum(map(len, frames))


def test_a_large_message_is_decoded_without_copying_its_arrays() -> None:
    frames = wire(Actions(0, {"a": np.zeros(1 << 20, np.uint8), "b": np.zeros((16, 1 << 16), np.uint8)}))
    decode(frames)
    tracemalloc.start()
    try:
        decode(frames)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_an_error_message_of_a_refusal_names_the_kind_and_the_field() -> None:
    with pytest.raises(ProtocolError, match=r"NotModified.version is 'new'"):
        decode([header(11, fields=["new"])])
    with pytest.raises(ProtocolError, match=r"array 'a' declares <f4 \[2\], its frame has 7 bytes"):
        decode(declares("a", "<f4", [2], b"\0" * 7))


def test_a_refusal_is_short_whatever_it_refuses() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode([header(16, fields=[["long"] * 4000, "", ""])])
    assert len(str(caught.value)) < 300


def test_the_messages_with_arrays_are_the_ones_of_the_design() -> None:
    having = {kind.__name__ for kind in KINDS if "arrays" in typing.get_type_hints(kind)}
    assert having == {kind.__name__ for kind in (Act, Actions, Insert, Batch, Weights)} | {
        "UpdatePriorities",
        "Finished",
    }
    assert not {Hello.__name__, Ok.__name__, Error.__name__} & having
