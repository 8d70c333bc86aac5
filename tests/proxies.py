"""A real proxy between clients and a server, for tests of lost replies and of peers that stall, and floods."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import zmq

from common.codec import decode
from common.messages import Message, Wait


async def send_all(socket: zmq.Socket[bytes], messages: Iterable[list[Any]]) -> None:
    """Sends messages as fast as they are taken, to a server that may run on this event loop.

    Not from a thread that waits: libzmq ends the process where its socket is closed meanwhile.
    """
    for frames in messages:
        while True:
            try:
                socket.send_multipart(frames, zmq.NOBLOCK)
                break
            except zmq.Again:
                await asyncio.sleep(0)


class Proxy:
    """Forwards between `listen` and `upstream` on a thread of its own, and loses or holds back what it is told to.

    Each client gets a connection of its own to the server, which so cannot tell. `requests`, `replies` and `dropped`
    count messages by class name; a Wait always passes and is not counted.
    """

    def __init__(self, listen: str, upstream: str) -> None:
        self._upstream = upstream
        self._to_drop: Counter[str] = Counter()
        self._all_once = False
        self._stalled = False
        self._closing = False
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.replies: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._front = zmq.Context.instance().socket(zmq.ROUTER)
        self._front.linger = 0
        self._front.bind(listen)
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._thread = threading.Thread(target=self._forward, name=f"proxy {listen}", daemon=True)
        self._thread.start()

    def drop_reply(self, kind: type[Message]) -> None:
        """Loses the next reply of `kind`."""
        with self._lock:
            self._to_drop[kind.__name__] += 1

    def drop_first_of_each(self) -> None:
        """Loses the first reply of every kind from now on."""
        with self._lock:
            self._all_once = True

    def stall(self) -> None:
        """Forwards nothing either way until `resume`; connections stay up and messages queue."""
        with self._lock:
            self._stalled = True

    def resume(self) -> None:
        with self._lock:
            self._stalled = False

    def close(self) -> None:
        self._closing = True
        self._thread.join()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _forward(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        identities: dict[Any, bytes] = {}
        while not self._closing:
            ready = poller.poll(5)
            if self._stalled:
                threading.Event().wait(0.005)
                continue
            for socket, _ in ready:
                frames = socket.recv_multipart()
                if socket is self._front:
                    identity, *request = frames
                    if identity not in self._backs:
                        back = self._backs[identity] = zmq.Context.instance().socket(zmq.DEALER)
                        back.linger = 0
                        back.reconnect_ivl = 30
                        back.connect(self._upstream)
                        identities[back] = identity
                        poller.register(back, zmq.POLLIN)
                    self._count(self.requests, request)
                    self._backs[identity].send_multipart(request)
                elif self._passes(frames):
                    self._front.send_multipart([identities[socket], *frames])
        for socket in (self._front, *self._backs.values()):
            socket.close()

    def _passes(self, reply: list[bytes]) -> bool:
        message, _ = decode(reply)
        name = type(message).__name__
        if isinstance(message, Wait):
            return True
        with self._lock:
            lost = self._to_drop[name] > 0 or (self._all_once and not self.dropped[name])
            if lost:
                self._to_drop[name] = max(0, self._to_drop[name] - 1)
            (self.dropped if lost else self.replies)[name] += 1
        return not lost

    def _count(self, counter: Counter[str], frames: list[bytes]) -> None:
        message, _ = decode(frames)
        with self._lock:
            counter[type(message).__name__] += 1
