"""Messages to frames and back: the only file that sees bytes.

A multipart is a msgpack header, `[kind, n, sender, receiver, ack, fields, arrays]`, then one raw frame per array.
Whatever comes in, `decode` gives a message or raises ProtocolError; array data is never copied.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np

from common.errors import ProtocolError
from common.messages import KINDS, Message

MAX_HEADER_BYTES = 1 << 20
SHORT_HEADER_BYTES = 256
MAX_LIST = 4096
MAX_TEXT = 1 << 16
MAX_DIMENSIONS = 16

DTYPES = {
    np.dtype(t).str: np.dtype(t)
    for t in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, np.float32, np.float64),
    )
}


# A dtype's own `str` is made anew each time.
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Envelope(NamedTuple):
    """The way of a message: request number, lives of sender and receiver, lowest request number still unanswered."""

    n: int
    sender: int
    receiver: int
    ack: int


def _is_int(value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_mapping(value: Any) -> bool:
    return type(value) is dict and all(map(_is_text, value))


def _is_stream(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and _is_text(value[0]) and _is_int(value[1])


_CHECKS: dict[Any, tuple[Callable[[Any], bool], Callable[[Any], Any] | None]] = {
    int: (_is_int, None),
    float: (lambda value: type(value) in (float, int), float),
    str: (_is_text, None),
    dict[str, Any]: (_is_mapping, None),
    dict[str, Any] | None: (lambda value: value is None or _is_mapping(value), None),
    dict[str, float]: (lambda v: _is_mapping(v) and all(type(item) in (float, int) for item in v.values()), None),
    tuple[str, ...]: (lambda value: type(value) is list and all(map(_is_text, value)), tuple),
    tuple[tuple[str, int], ...]: (
        lambda value: type(value) is list and all(map(_is_stream, value)),
        lambda value: tuple(map(tuple, value)),
    ),
}


class _Layout(NamedTuple):
    kind: type[Message]
    names: tuple[str, ...]
    checks: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any] | None], ...]
    has_arrays: bool


def _layout(kind: type[Message]) -> _Layout:
    hints = typing.get_type_hints(kind)
    names = tuple(f.name for f in dataclasses.fields(kind) if f.name != "arrays")
    return _Layout(kind, names, tuple(_CHECKS[hints[name]] for name in names), "arrays" in hints)


_LAYOUTS = tuple(_layout(kind) for kind in KINDS)
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


def contiguous(array: np.ndarray) -> np.ndarray:
    """Gives `array` itself, or a C-contiguous little-endian copy: the one place where sending may copy."""
    if array.dtype not in _CODES or not array.flags.c_contiguous:
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        if array.dtype not in _CODES:
            raise TypeError(f"arrays of dtype {array.dtype} cannot be sent")
    return array


def encode(message: Message, envelope: Envelope) -> list[Any]:
    """Gives the frames of a message: the header's bytes, then the arrays themselves, not copied.

    Raises ProtocolError for what is beyond a limit, and TypeError for arrays of other than plain numbers.
    """
    number = _NUMBERS[type(message)]
    layout = _LAYOUTS[number]
    fields = [getattr(message, name) for name in layout.names]
    sent, specs = [], []
    for name, array in message.arrays.items() if layout.has_arrays else ():  # type: ignore[union-attr]
        array = contiguous(array)
        if array.ndim > MAX_DIMENSIONS:
            raise ProtocolError(f"{layout.kind.__name__} has an array of more than {MAX_DIMENSIONS} dimensions")
        sent.append(array)
        specs.append((name, _CODES[array.dtype], array.shape))
    return [_pack(layout.kind, (number, *envelope, fields, specs), 1 + len(sent)), *sent]


def _pack(kind: type[Message], header: tuple[Any, ...], n_frames: int) -> bytes:
    packed: bytes = msgpack.packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        text = f"{kind.__name__} has a header of {len(packed)} bytes, more than {MAX_HEADER_BYTES}"
        raise ProtocolError(text, "send fewer arrays or shorter fields in one message")
    # An entry takes a byte or more: a shorter header can hold nothing beyond a limit, and most are shorter.
    if len(packed) > MAX_LIST:
        try:
            _unpack(memoryview(packed), n_frames)
        except ValueError as error:
            raise ProtocolError(f"{kind.__name__} is beyond a limit: {error}", "send shorter fields") from None
    return packed


def decode(frames: Sequence[Any]) -> tuple[Message, Envelope]:
    """Gives the message in `frames` (zmq frames or bytes) and its envelope; arrays are read-only views of the frames.

    Raises ProtocolError for anything that `encode` cannot have made; allocates nothing of a size only claimed.
    """
    try:
        header = memoryview(frames[0])
        if header.nbytes > MAX_HEADER_BYTES:
            raise ProtocolError(f"a header of {header.nbytes} bytes")
        number, n, sender, receiver, ack, fields, specs = _unpack(header, len(frames))
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a message header: {error!s:.100}") from None
    envelope = Envelope(n, sender, receiver, ack)
    if not (type(number) is int and 0 <= number < len(KINDS) and all(map(_is_int, envelope))):
        raise ProtocolError(f"not a message header: kind {_show(number)}")
    kind, names, checks, has_arrays = _LAYOUTS[number]
    if type(fields) is not list or len(fields) != len(names):
        raise ProtocolError(f"{kind.__name__} with other fields than {', '.join(names)}")
    for i, (check, convert) in enumerate(checks):
        if not check(fields[i]):
            raise ProtocolError(f"{kind.__name__}.{names[i]} is {_show(fields[i])}")
        if convert is not None:
            fields[i] = convert(fields[i])
    if type(specs) is not list or len(specs) != len(frames) - 1 or (specs and not has_arrays):
        raise ProtocolError(f"{kind.__name__} with {len(frames) - 1} array frames, which its header does not declare")
    arrays: dict[str, np.ndarray] = dict(map(_array, specs, frames[1:]))
    if len(arrays) != len(specs):
        raise ProtocolError(f"{kind.__name__} names an array twice")
    return kind(*fields, *((arrays,) if has_arrays else ())), envelope


def _unpack(header: memoryview, n_frames: int) -> Any:
    # The list of arrays is as long as there are frames: who claims more than usual must send as many.
    longest = max(MAX_LIST, n_frames)
    # A list takes its claimed length before its items are read. In a short header no claim beyond it can be kept; of a
    # long one see first, without making any, that they are there.
    if header.nbytes <= SHORT_HEADER_BYTES:
        longest = min(longest, header.nbytes)
    else:
        scan = msgpack.Unpacker(max_buffer_size=MAX_HEADER_BYTES, read_size=64)
        scan.feed(header)
        scan.skip()
    return msgpack.unpackb(
        header, max_array_len=longest, max_map_len=MAX_LIST, max_str_len=MAX_TEXT, max_ext_len=0, ext_hook=_refuse
    )


def _refuse(code: int, _data: bytes) -> None:
    raise ValueError(f"extension type {code}")


def _show(value: Any) -> str:
    """Writes any decoded value, however large or deep, in a few words."""
    return f"{reprlib.repr(value):.100}"


def _array(spec: Any, frame: Any) -> tuple[str, np.ndarray]:
    """Gives the name and the read-only view that one declared array and its frame make."""
    try:
        name, code, shape = spec
        dtype = DTYPES[code]
        buffer = memoryview(frame)
        if not _is_text(name) or type(shape) is not list or len(shape) > MAX_DIMENSIONS:
            raise ValueError
        for d in shape:
            if type(d) is not int or d < 0:
                raise ValueError
        if math.prod(shape) * dtype.itemsize != buffer.nbytes:
            raise ProtocolError(f"array {_show(name)} declares {code} {shape}, its frame has {buffer.nbytes} bytes")
        array: np.ndarray = np.ndarray(shape, dtype, buffer)
    except (ValueError, TypeError, KeyError) as error:
        raise ProtocolError(f"not an array declaration: {_show(spec)}") from error
    array.setflags(write=False)
    return name, array


def nbytes(frames: Sequence[Any]) -> int:
    """Gives the total size of frames in bytes."""
    return sum(f.nbytes if isinstance(f, np.ndarray) else len(f) for f in frames)
