"""The Client: a DEALER whose requests stay in flight until they are answered, and which says aloud when they are not.

It sends an unanswered request again under the same number, through reconnecting and through restarts of the server.
Knows nothing of what messages mean, but for Hello, Welcome, Wait and Error.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.codec import Envelope, decode, encode, nbytes
from common.config import NetConfig
from common.errors import Finished, PeerLost, ProtocolError, RemoteError
from common.messages import Error, Hello, Message, Wait, Welcome
from common.metrics import ServiceMetrics
from common.transport.socket import Socket

log = logging.getLogger("headrace.transport")

TICK_S = 0.25


@dataclass(slots=True)
class _Request:
    """A request in flight; it is sent again `resend_s` after anything was `heard` of it."""

    message: Message
    future: asyncio.Future[Any]
    resend_s: float
    heard: float = field(default_factory=time.monotonic)


class Client:
    """Asks the server at `address`, for as long as it takes, and says aloud when it does not answer.

    A request stays in flight under its number through re-sending, reconnecting and restarts of the server, until it is
    answered or the peer has been silent for `net.give_up_s` (PeerLost). `waiting(text | None)` hears whom this client
    waits for. With `replaceable`, where another server can answer as well, PeerLost comes as soon as the connection is
    lost or the peer has been silent for `net.deadline_s`.
    """

    def __init__(
        self,
        address: str,
        peer: str,
        hello: Hello,
        *,
        net: NetConfig,
        metrics: ServiceMetrics,
        max_in_flight: int,
        waiting: Callable[[str | None], None] | None = None,
        replaceable: bool = False,
    ) -> None:
        self.address = address
        self.peer = f"{peer} at {address}"
        self._life = hello.life
        # Here, so that one which cannot be sent fails at the start.
        self._hello = encode(hello, Envelope(0, hello.life, 0, 0))
        self._net = net
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._replaceable = replaceable
        self._report = waiting or (lambda text: None)
        self._reported: str | None = None
        self._requests: dict[int, _Request] = {}
        self._n = 0
        self.server_life = 0
        self._ready = False
        self._heard = self._ticked = time.monotonic()
        self._stalled = False
        self._linked = False
        self._redial_s = net.deadline_s
        self._resend_s = net.resend_s
        self._hello_backoff = 0.1
        self._next_hello = 0.0
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting for it when it fails: that is no error of its own.
        self._welcome.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._socket = Socket(self._receive, self._connected, self._refused, serves=False)
        self._socket.open(address, net)
        self._waiting(f"waits for the {self.peer}")
        self._tick_handle = asyncio.get_running_loop().call_soon(self._tick)

    @property
    def live(self) -> bool:
        """Whether the server has said Welcome and is not silent past its deadline."""
        return self._ready and not self._stalled

    async def welcome(self) -> Welcome:
        """Gives the server's first answer to Hello; raises PeerLost, Finished or RemoteError."""
        return await asyncio.shield(self._welcome)

    async def request(self, message: Message) -> Any:
        """Gives the reply; raises Finished, RemoteError with the peer's code, or PeerLost."""
        if len(self._requests) >= self._max_in_flight:
            raise RuntimeError(f"more than {self._max_in_flight} requests in flight to the {self.peer}")
        self._n += 1
        n = self._n
        # Stored before it is sent: over inproc the answer may come first.
        future = asyncio.get_running_loop().create_future()
        request = self._requests[n] = _Request(message, future, self._resend_s)
        if len(self._requests) == 1:
            self._heard, self._stalled = request.heard, False
        self._metrics.in_flight.inc()
        try:
            if self._ready:
                self._send(n, request)
            return await future
        finally:
            self._requests.pop(n, None)
            self._metrics.in_flight.dec()

    def close(self) -> None:
        self._tick_handle.cancel()
        self._socket.close()
        if not self._welcome.done():
            self._welcome.cancel()

    def _waiting(self, text: str | None) -> None:
        if text != self._reported:
            self._reported = text
            self._report(text)

    def _send(self, n: int, request: _Request) -> None:
        try:
            frames = encode(request.message, Envelope(n, self._life, self.server_life, min(self._requests)))
        except Exception as error:
            # Whoever asked hears of it, also where it is sent later: it must not keep others from being sent.
            if not request.future.done():
                request.future.set_exception(error)
            return
        self._metrics.bytes_out(type(request.message).__name__).inc(nbytes(frames))
        self._socket.send(frames)

    def _say_hello(self) -> None:
        self._next_hello = time.monotonic() + self._hello_backoff * random.uniform(0.5, 1.5)
        self._hello_backoff = min(self._hello_backoff * 1.5, 2.0)
        self._socket.send(self._hello)

    def _connected(self, up: bool) -> None:
        self._ready = False
        self._linked = up
        if up:
            self._hello_backoff = 0.1
            self._say_hello()
        elif self.server_life:
            log.warning("lost the %s; reconnecting", self.peer)
            self._waiting(f"lost the {self.peer}")
            if self._replaceable:
                self._abandon(f"lost the {self.peer}")

    def _refused(self) -> None:
        self._metrics.errors.labels("refused").inc()
        self._waiting(f"refused by the {self.peer}: see net.security and the keys of both")

    def _receive(self, frames: list[Any]) -> None:
        try:
            message, envelope = decode(frames)
        except ProtocolError as error:
            self._metrics.errors.labels(error.code).inc()
            log.error("the %s sent %s", self.peer, error)
            return
        self._metrics.bytes_in(type(message).__name__).inc(nbytes(frames))
        # To be greeted again is no answer: what is asked may be too large to get through before the next redial.
        if envelope.n or envelope.sender != self.server_life or not self._requests:
            if self._stalled:
                self._stalled = False
                log.warning("the %s answers again after %.1f s", self.peer, time.monotonic() - self._heard)
            self._heard, self._redial_s = time.monotonic(), self._net.deadline_s
        if isinstance(message, Wait):
            self._wait(message, envelope.n)
        elif isinstance(message, Error) and message.code == "new_life":
            # Hello comes with the next tick: a server that never agrees must not be asked at full speed.
            self._ready = False
        elif isinstance(message, Error) and message.code == "replaced":
            self._fail(message)
        elif envelope.n == 0:
            self._greeted(message)
        elif envelope.sender == self.server_life:
            if (request := self._requests.get(envelope.n)) is not None:
                self._answer(request.future, message)
                self._waiting(None)
            else:
                # A second answer: it was asked again too early, and repeats of large messages would queue up.
                self._resend_s = min(2 * self._resend_s, self._net.deadline_s)

    def _fail(self, error: Error) -> None:
        for future in (self._welcome, *(request.future for request in self._requests.values())):
            self._answer(future, error)

    def _wait(self, wait: Wait, n: int) -> None:
        self._waiting(f"waits for the {self.peer}: {wait.reason}")
        if n == 0:
            self._next_hello = time.monotonic() + self._net.resend_s
        elif (request := self._requests.get(n)) is not None:
            request.heard = self._heard

    def _greeted(self, message: Message) -> None:
        if isinstance(message, Error):
            self._fail(message)
        if not isinstance(message, Welcome):
            return
        if self._ready and message.life == self.server_life:
            return
        if self.server_life and message.life != self.server_life:
            log.warning("the %s has restarted; sending %d requests again", self.peer, len(self._requests))
        self.server_life = message.life
        self._ready = True
        self._waiting(None)
        if not self._welcome.done():
            self._welcome.set_result(message)
        for n, request in list(self._requests.items()):
            request.heard = time.monotonic()
            self._send(n, request)

    @staticmethod
    def _answer(future: asyncio.Future[Any], message: Message) -> None:
        if future.done():
            return
        if not isinstance(message, Error):
            future.set_result(message)
        elif message.code == Finished.code:
            future.set_exception(Finished(message.message, message.remedy))
        else:
            future.set_exception(RemoteError(message.code, message.message, message.remedy))

    def _tick(self) -> None:
        self._tick_handle = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        now = time.monotonic()
        # The time in which this process itself was stopped is no silence of its peer.
        self._heard = min(now, self._heard + max(0.0, now - self._ticked - 2 * TICK_S))
        self._ticked = now
        if not self._ready:
            if now >= self._next_hello:
                self._say_hello()
        else:
            for n, request in self._requests.items():
                if now - request.heard >= request.resend_s:
                    request.heard = now
                    request.resend_s = min(2 * request.resend_s, self._net.deadline_s)
                    self._metrics.resends.inc()
                    self._send(n, request)
        if self._requests or not self._welcome.done():
            self._watch(now - self._heard)

    def _watch(self, silent_s: float) -> None:
        """Says once that the peer is silent past its deadline, and gives up on it after much longer."""
        if silent_s >= self._net.deadline_s and not self._stalled:
            self._stalled = True
            self._metrics.stalls.inc()
            kinds = sorted({type(r.message).__name__ for r in self._requests.values()}) or ["Hello"]
            text = f"no answer from the {self.peer} to {', '.join(kinds)} for {silent_s:.0f} s"
            log.error("%s; still asking", text)
            self._waiting(text)
            if self._replaceable:
                self._abandon(text)
        if silent_s >= self._redial_s and self._linked and self.address.startswith("tcp:"):
            # The peer's address may have changed, or a NAT forgotten the connection: libzmq would only see that when
            # its heartbeat times out. Ever more rarely, so that a large frame on a slow link gets through.
            self._redial_s *= 2
            self._ready = self._linked = False
            self._socket.redial(self.address)
        if silent_s >= self._net.give_up_s:
            self._abandon(f"the {self.peer} has been silent for {silent_s:.0f} s")
            if not self._welcome.done():
                self._welcome.set_exception(PeerLost(f"no Welcome from the {self.peer}", "is it running?"))

    def _abandon(self, why: str) -> None:
        for request in self._requests.values():
            if not request.future.done():
                request.future.set_exception(PeerLost(why, "is it running? see net.give_up_s"))
