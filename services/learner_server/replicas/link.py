"""Messages between the learner and a replica: those of the wire, over a pair of sockets that this machine joins.

A message is the count of its frames and their sizes, then the frames that `common.codec` makes. The end of one side is
the end of the other's messages, whatever the other is doing, and that is how each learns of it. Hello brings a replica
the job, Batch its part of one (and `progress`, without axes), Ok asks whether it agrees, Finish ends it.
"""

from __future__ import annotations

import socket
import struct

import numpy as np

from common.codec import Envelope, decode, encode
from common.messages import Message

_NOBODY = Envelope(0, 0, 0, 0)


def send(link: socket.socket, message: Message) -> None:
    """Sends one message; raises OSError where the other side has ended, TimeoutError where it takes nothing in."""
    frames = [memoryview(frame) for frame in encode(message, _NOBODY)]
    link.sendall(struct.pack(f"<{len(frames) + 1}Q", len(frames), *(frame.nbytes for frame in frames)))
    for frame in frames:
        link.sendall(frame)


def receive(link: socket.socket) -> Message | None:
    """Gives the next message, with arrays of its own, or None where the other side has ended."""
    try:
        (count,) = struct.unpack("<Q", _exactly(link, 8))
        sizes = struct.unpack(f"<{count}Q", _exactly(link, 8 * count))
        message, _ = decode([_exactly(link, size) for size in sizes])
    except (EOFError, ConnectionError):
        return None
    for array in getattr(message, "arrays", {}).values():
        array.flags.writeable = True  # nobody else has its frame
    return message


def _exactly(link: socket.socket, size: int) -> memoryview:
    # Each frame has memory of its own: arrays lie as they must for their types.
    frame = memoryview(np.empty(size, np.uint8).data)
    rest = frame
    while rest:
        if not (got := link.recv_into(rest)):
            raise EOFError
        rest = rest[got:]
    return frame
