"""The Server: a ROUTER that hands each new request to its role as a Ticket, once, and repeats kept replies.

A request's number is handled once per client life; its reply is kept until the client acknowledges it. Knows nothing of
what messages mean, but for Hello and its Welcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from common.codec import Envelope, decode, encode, nbytes
from common.config import NetConfig
from common.errors import Finished, HeadraceError, ProtocolError
from common.messages import PROTOCOL, Error, Hello, Message, Wait, Welcome
from common.metrics import ServiceMetrics
from common.transport.socket import Socket
from common.types import new_life

log = logging.getLogger("headrace.transport")

WAIT_EVERY_S = 2.0
TICK_S = 0.25
MAX_CLIENTS = 4096
MAX_REPLACED = 4096
# Of one client: far above what ours keep in flight.
MAX_UNACKNOWLEDGED = 1024
MAX_SAID = 4000
FORGET_S = 3600.0  # a client that is silent for so long has gone, and asks for none of its replies again


def _error(code: str, message: str, remedy: str) -> Error:
    """Gives an Error that the codec carries, however much of a request its text quotes."""
    return Error(code, message[:MAX_SAID], remedy[:MAX_SAID])


def failure(error: Exception, remedy: str) -> Error:
    """Gives the Error that tells an asker of what nobody foresaw."""
    return _error("internal", f"{type(error).__name__}: {error}", remedy)


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that a server owes an answer; `reason` is what its asker is told while it waits."""

    _server: Server
    client: _Peer
    n: int
    message: Message
    reason: str = "queued"
    waited: float = field(default_factory=time.monotonic)

    def reply(self, message: Message) -> None:
        """Answers, once, or tells why it cannot be sent; a second answer, or one to a replaced client, is dropped."""
        try:
            self._server._reply(self, message)
        except ProtocolError as error:  # not to whoever made the answer due
            self.fail(error)

    def welcome(self, spec: dict[str, Any] | None = None) -> None:
        """Answers a Hello, with what the asker needs to start."""
        self.reply(Welcome(PROTOCOL, self._server.life, spec))

    def fail(self, error: HeadraceError) -> None:
        """Answers with an Error."""
        self.reply(_error(error.code, error.message, error.remedy))


@dataclass(eq=False, slots=True)
class _Peer:
    """What a server remembers of one client life."""

    hello: Hello
    identity: bytes
    ack: int = 1
    pending: dict[int, Ticket] = field(default_factory=dict)
    done: dict[int, list[Any]] = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)


class Server:
    """Binds `address` and gives each new request to `handle` as a Ticket, to be answered now or later."""

    def __init__(
        self, address: str, handle: Callable[[Ticket], None], *, net: NetConfig, metrics: ServiceMetrics
    ) -> None:
        self.address = address
        self.life = new_life()
        self._handle = handle
        self._metrics = metrics
        self._peers: dict[int, _Peer] = {}
        # Names by life, oldest first.
        self._replaced: dict[int, str] = {}
        self._connections = 0
        self._met = address.startswith("inproc:")  # whose connections are not told of
        self._finished: Finished | None = None
        self._socket = Socket(self._receive, self._connected, self._refused, serves=True)
        self._socket.open(address, net)
        self._tick_handle = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def finish(self, reason: str) -> None:
        """Answers every request, parked or to come, with a `finished` Error."""
        self._finished = Finished(reason, "nothing is left to do")
        for peer in list(self._peers.values()):
            for ticket in list(peer.pending.values()):
                ticket.fail(self._finished)

    async def drained(self, linger_s: float) -> None:
        """Returns when every client has disconnected, if any ever came, or after `linger_s`."""
        end = time.monotonic() + linger_s
        # Clients that start together with a server whose job is over are still on their way.
        while (self._connections > 0 or not self._met) and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        self._tick_handle.cancel()
        self._socket.close()

    def _connected(self, up: bool) -> None:
        self._met = self._met or up
        self._connections = max(0, self._connections + (1 if up else -1))

    def _refused(self) -> None:
        self._metrics.errors.labels("refused").inc()
        log.warning("refused a client at %s: it does not speak CURVE, or its key is not on the list", self.address)

    def _receive(self, frames: list[Any]) -> None:
        identity = frames[0].bytes
        try:
            message, envelope = decode(frames[1:])
        except ProtocolError as error:
            reply = Error(error.code, error.message, "speak the protocol of docs/protocol.md")
            self._send(identity, reply, 0, 0)
            return
        self._metrics.bytes_in(type(message).__name__).inc(nbytes(frames))
        life = message.life if isinstance(message, Hello) else envelope.sender
        if life in self._replaced:
            # Whatever it asks, Hello included: two clients of one name would else take turns, and both be applied.
            text = f"another {self._replaced[life]} has taken this one's place"
            refusal = _error("replaced", text, "give each its own --index, and stop the old one")
            self._send(identity, refusal, envelope.n, life)
            return
        if isinstance(message, Hello):
            self._greet(identity, message)
            return
        peer = self._peers.get(envelope.sender)
        if peer is None or envelope.receiver != self.life:
            # Addressed to an earlier life of ours: the client must say Hello to this one first.
            self._send(identity, Error("new_life", "say Hello first"), envelope.n, life)
            return
        peer.identity, peer.heard, peer.ack = identity, time.monotonic(), max(peer.ack, envelope.ack)
        peer.done = {n: frames for n, frames in peer.done.items() if n >= peer.ack}
        n = envelope.n
        if n in peer.done:
            self._socket.send([identity, *peer.done[n]])
        elif n >= peer.ack and n not in peer.pending:
            if len(peer.pending) + len(peer.done) >= MAX_UNACKNOWLEDGED:
                log.error("%s has %d requests unacknowledged; one more is dropped", peer.hello.name, MAX_UNACKNOWLEDGED)
                return
            self._dispatch(peer, n, message)

    def _greet(self, identity: bytes, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            text = f"{hello.name} speaks protocol {hello.protocol}, this server speaks {PROTOCOL}"
            self._send(identity, _error("protocol_version", text, "run one version everywhere"), 0, hello.life)
            return
        peer = self._peers.get(hello.life)
        if peer is None:
            if len(self._peers) >= MAX_CLIENTS:
                self._forget(min(self._peers, key=lambda life: self._peers[life].heard))
            peer = self._peers[hello.life] = _Peer(hello, identity)
            log.info("%s says Hello", hello.name)
        peer.identity, peer.heard, peer.hello = identity, time.monotonic(), hello
        if 0 not in peer.pending:
            self._dispatch(peer, 0, hello)

    def _welcomed(self, hello: Hello) -> None:
        """Lets a client take the place of those of its name that came before: not sooner, for it may be refused."""
        for life in takewhile(lambda life: life != hello.life, list(self._peers)):
            if self._peers[life].hello.name == hello.name:
                self._replaced[life] = hello.name
                self._forget(life)
        for life in list(self._replaced)[:-MAX_REPLACED]:
            del self._replaced[life]

    def _forget(self, life: int) -> None:
        gone = self._peers.pop(life)
        self._metrics.parked.dec(len(gone.pending))
        gone.pending.clear()

    def _dispatch(self, peer: _Peer, n: int, message: Message) -> None:
        ticket = Ticket(self, peer, n, message)
        peer.pending[n] = ticket
        self._metrics.parked.inc()
        if self._finished is not None:
            ticket.fail(self._finished)
            return
        try:
            self._handle(ticket)
        except HeadraceError as error:
            ticket.fail(error)
        except Exception as error:
            log.exception("%s from %s failed", type(message).__name__, peer.hello.name)
            ticket.reply(failure(error, f"see the log of the server at {self.address}"))

    def _reply(self, ticket: Ticket, message: Message) -> None:
        peer, n = ticket.client, ticket.n
        if peer.pending.get(n) is not ticket:
            return
        # First, for it raises where a message cannot be encoded: the ticket then still stands for an Error.
        frames = self._send(peer.identity, message, n, peer.hello.life)
        del peer.pending[n]
        self._metrics.parked.dec()
        if n:
            peer.done[n] = frames
        elif isinstance(message, Welcome):
            self._welcomed(peer.hello)
        else:
            self._forget(peer.hello.life)

    def _send(self, identity: bytes, message: Message, n: int, life: int) -> list[Any]:
        frames = encode(message, Envelope(n, self.life, life, 0))
        if isinstance(message, Error):
            self._metrics.errors.labels(message.code).inc()
        self._metrics.bytes_out(type(message).__name__).inc(nbytes(frames))
        # A peer that is not there asks again when it is back, and gets the kept frames.
        self._socket.send([identity, *frames])
        return frames

    def _tick(self) -> None:
        self._tick_handle = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        now = time.monotonic()
        for peer in self._peers.values():
            if now - peer.heard > FORGET_S:
                peer.done.clear()
            for n, ticket in peer.pending.items():
                if now - ticket.waited >= WAIT_EVERY_S:
                    ticket.waited = now
                    self._send(peer.identity, Wait(ticket.reason[:MAX_SAID]), n, peer.hello.life)
