"""Server (a ROUTER that answers) and Client (a DEALER that asks): deadlines, re-sending, at-most-once, lives.

The only import of zmq. Knows nothing of what messages mean. Everything here runs on one asyncio loop; nothing blocks.

Delivery: a client sends an unanswered request again under the same number; a server handles a number once per client
life and repeats the kept reply. Each request says, in `ack`, which replies the server may forget.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from common.codec import Envelope, decode, encode, nbytes
from common.config import NetConfig
from common.errors import ConfigError, Finished, HeadraceError, PeerLost, ProtocolError, RemoteError
from common.messages import PROTOCOL, Error, Hello, Message, Wait, Welcome
from common.metrics import ServiceMetrics
from common.types import new_life

log = logging.getLogger("headrace.transport")

WAIT_EVERY_S = 2.0
TICK_S = 0.25
MAX_CLIENTS = 4096
MAX_ERROR_TEXT = 4000
_BURST = 64
_OPTIONS = {
    zmq.LINGER: 1000,
    zmq.CONNECT_TIMEOUT: 5000,
    zmq.HEARTBEAT_IVL: 10_000,
    # Long: a large frame on a slow link must not look like a dead peer. A process that dies is seen by its disconnect.
    zmq.HEARTBEAT_TIMEOUT: 30_000,
}
_IPC_PATH_BYTES = 100


def check_address(address: str, security: str) -> None:
    """Raises ConfigError for an address that would fail later, or send plain tcp off this machine unasked."""
    scheme, _, rest = address.partition("://")
    if scheme == "inproc" and rest:
        return
    if scheme == "ipc" and rest:
        if len(rest.encode()) > _IPC_PATH_BYTES:
            raise ConfigError(f"the ipc path {rest} is longer than {_IPC_PATH_BYTES} bytes", "use a shorter directory")
        return
    try:
        url = urlsplit(address)
        host = url.hostname if scheme == "tcp" and url.port is not None else None
    except ValueError:
        host = None
    if not host:
        raise ConfigError(f"net address {address!r} is none", "use tcp://host:port, ipc:///path or inproc://name")
    if security != "plain" and not _is_loopback(host):
        raise ConfigError(
            f"net address {address} would carry unencrypted tcp off this machine",
            "set net.security=plain if the network is private",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Socket:
    """A ZeroMQ socket that hands each multipart it receives to `receive`, and says when connections come and go."""

    def __init__(self, kind: int, receive: Callable[[list[Any]], None], connected: Callable[[bool], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._connected = connected
        self._zmq: zmq.Socket[Any] = zmq.Context.instance().socket(kind)
        for option, value in _OPTIONS.items():
            self._zmq.setsockopt(option, value)
        # A ROUTER says when a peer is gone; a DEALER without a connection fails to send at once, instead of queueing
        # for a peer that may never come.
        self._zmq.setsockopt(zmq.ROUTER_MANDATORY if kind == zmq.ROUTER else zmq.IMMEDIATE, 1)
        self._monitor: zmq.Socket[Any] = self._zmq.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._fds = (int(self._zmq.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD)))
        self._draining = False
        self._closed = False

    def open(self, address: str, bind: bool) -> None:
        try:
            if bind:
                self._zmq.bind(address)
            else:
                # On one machine asking often is cheap; across a network the interval doubles up to 2 s.
                first, last = (100, 2000) if address.startswith("tcp:") else (30, 0)
                self._zmq.setsockopt(zmq.RECONNECT_IVL, first)
                self._zmq.setsockopt(zmq.RECONNECT_IVL_MAX, last)
                self._zmq.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"cannot {'bind' if bind else 'connect'} {address}: {error}", "choose another address"
            ) from error
        self._loop.add_reader(self._fds[0], self._drain)
        self._loop.add_reader(self._fds[1], self._drain_monitor)
        self._loop.call_soon(self._drain)
        self._loop.call_soon(self._drain_monitor)

    def send(self, frames: list[Any]) -> bool:
        """Sends now or not at all; False says that the peer is not there."""
        if self._closed:
            return False
        try:
            self._zmq.send_multipart(frames, zmq.NOBLOCK, copy=False)
            sent = True
        except zmq.ZMQError:
            sent = False
        # The fd is edge-triggered, and even trying to send may consume the edge of a message that came meanwhile.
        if not self._draining and int(self._zmq.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._drain)
        return sent

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fd in self._fds:
                self._loop.remove_reader(fd)
            self._zmq.disable_monitor()
            self._monitor.close(0)
            self._zmq.close()

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        try:
            for _ in range(_BURST):
                if self._closed:
                    return
                try:
                    frames = self._zmq.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    return
                try:
                    self._receive(frames)
                except Exception:
                    # The fd tells of a message once: whatever this one did, the ones behind it must be read too.
                    log.exception("a message failed")
        finally:
            self._draining = False
        self._loop.call_soon(self._drain)

    def _drain_monitor(self) -> None:
        while not self._closed:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected(True)
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._connected(False)


def _error(code: str, message: str, remedy: str) -> Error:
    """Gives an Error that the codec carries, however much of a request its text quotes."""
    return Error(code, message[:MAX_ERROR_TEXT], remedy[:MAX_ERROR_TEXT])


class Ticket:
    """A request that a server owes an answer; `reason` is what its asker is told while it waits."""

    __slots__ = ("_server", "client", "message", "n", "reason", "waited")

    def __init__(self, server: Server, client: _Peer, n: int, message: Message) -> None:
        self._server = server
        self.client = client
        self.n = n
        self.message = message
        self.reason = "queued"
        self.waited = time.monotonic()

    def reply(self, message: Message) -> None:
        """Answers, once; a second answer, or one to a client that was replaced, is dropped."""
        self._server._reply(self, message)

    def fail(self, error: HeadraceError) -> None:
        """Answers with an Error."""
        self.reply(_error(error.code, error.message, error.remedy))


class _Peer:
    """What a server remembers of one client life."""

    __slots__ = ("ack", "done", "heard", "hello", "identity", "pending")

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.identity: Any = b""
        self.ack = 1
        self.pending: dict[int, Ticket] = {}
        self.done: dict[int, list[Any]] = {}
        self.heard = time.monotonic()


class Server:
    """Binds `address` and gives each new request to `handle` as a Ticket, to be answered now or later.

    `gone`, if given, hears of client lives that a newer life of the same name has replaced.
    """

    def __init__(
        self,
        address: str,
        handle: Callable[[Ticket], None],
        *,
        net: NetConfig,
        metrics: ServiceMetrics,
        gone: Callable[[Hello], None] | None = None,
    ) -> None:
        check_address(address, net.security)
        self.address = address
        self.life = new_life()
        self._handle = handle
        self._gone = gone
        self._metrics = metrics
        self._peers: dict[int, _Peer] = {}
        self._connections = 0
        self._finished: Finished | None = None
        self._socket = _Socket(zmq.ROUTER, self._receive, self._connected)
        self._socket.open(address, bind=True)
        self._tick_handle = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def finish(self, reason: str) -> None:
        """Answers every request, parked or to come, with a `finished` Error."""
        self._finished = Finished(reason, "nothing is left to do")
        for peer in self._peers.values():
            for ticket in list(peer.pending.values()):
                ticket.fail(self._finished)

    async def drained(self, linger_s: float) -> None:
        """Returns when every client has disconnected, or after `linger_s`."""
        end = time.monotonic() + linger_s
        while self._connections > 0 and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        self._tick_handle.cancel()
        self._socket.close()

    def _connected(self, up: bool) -> None:
        self._connections = max(0, self._connections + (1 if up else -1))

    def _receive(self, frames: list[Any]) -> None:
        identity = frames[0].bytes
        try:
            message, envelope = decode(frames[1:])
        except ProtocolError as error:
            self._metrics.errors.labels(error.code).inc()
            reply = Error(error.code, error.message, "speak the protocol of docs/protocol.md")
            self._socket.send([identity, *encode(reply, Envelope(0, self.life, 0, 0))])
            return
        self._metrics.bytes_in.labels(type(message).__name__).inc(nbytes(frames))
        if isinstance(message, Hello):
            self._greet(identity, message, envelope)
            return
        peer = self._peers.get(envelope.sender)
        if peer is None or envelope.receiver != self.life:
            # Addressed to an earlier life of ours: the client must say Hello to this one first.
            self._send(
                identity, Error("new_life", "say Hello first"), Envelope(envelope.n, self.life, envelope.sender, 0)
            )
            return
        peer.identity, peer.heard = identity, time.monotonic()
        self._forget_acknowledged(peer, envelope.ack)
        n = envelope.n
        if n in peer.done:
            self._socket.send([identity, *peer.done[n]])
        elif n >= peer.ack and n not in peer.pending:
            self._dispatch(peer, n, message)

    def _greet(self, identity: bytes, hello: Hello, envelope: Envelope) -> None:
        if hello.protocol != PROTOCOL:
            text = f"{hello.name} speaks protocol {hello.protocol}, this server speaks {PROTOCOL}"
            error = _error("protocol_version", text, "run one version everywhere")
            self._send(identity, error, envelope._replace(sender=self.life))
            return
        peer = self._peers.get(hello.life)
        if peer is None:
            self._replace_earlier_lives(hello)
            peer = self._peers[hello.life] = _Peer(hello)
            log.info("%s says Hello", hello.name)
        peer.identity, peer.heard, peer.hello = identity, time.monotonic(), hello
        if 0 not in peer.pending:
            self._dispatch(peer, 0, hello)

    def _replace_earlier_lives(self, hello: Hello) -> None:
        earlier = [life for life, peer in self._peers.items() if peer.hello.name == hello.name]
        if len(self._peers) >= MAX_CLIENTS and not earlier:
            earlier = [min(self._peers, key=lambda life: self._peers[life].heard)]
        for life in earlier:
            gone = self._peers.pop(life)
            self._metrics.parked.dec(len(gone.pending))
            gone.pending.clear()
            if self._gone is not None:
                self._gone(gone.hello)

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
            remedy = f"see the log of the server at {self.address}"
            ticket.reply(_error("internal", f"{type(error).__name__}: {error}", remedy))

    def _reply(self, ticket: Ticket, message: Message) -> None:
        peer, n = ticket.client, ticket.n
        if peer.pending.get(n) is not ticket:
            return
        # First, for it raises where a message cannot be encoded: the ticket then still stands for an Error.
        frames = self._send(peer.identity, message, Envelope(n, self.life, peer.hello.life, 0))
        del peer.pending[n]
        self._metrics.parked.dec()
        if isinstance(message, Error):
            self._metrics.errors.labels(message.code).inc()
        if n:
            peer.done[n] = frames

    def _send(self, identity: bytes, message: Message, envelope: Envelope) -> list[Any]:
        frames = encode(message, envelope)
        self._metrics.bytes_out.labels(type(message).__name__).inc(nbytes(frames))
        # A peer that is not there asks again when it is back, and gets the kept frames.
        self._socket.send([identity, *frames])
        return frames

    @staticmethod
    def _forget_acknowledged(peer: _Peer, ack: int) -> None:
        if ack > peer.ack:
            peer.ack = ack
            for n in [n for n in peer.done if n < ack]:
                del peer.done[n]

    def _tick(self) -> None:
        now = time.monotonic()
        for peer in self._peers.values():
            for n, ticket in peer.pending.items():
                if now - ticket.waited >= WAIT_EVERY_S:
                    ticket.waited = now
                    self._send(peer.identity, Wait(ticket.reason), Envelope(n, self.life, peer.hello.life, 0))
        self._tick_handle = asyncio.get_running_loop().call_later(TICK_S, self._tick)


class _Request:
    """A request in flight."""

    __slots__ = ("future", "heard", "message", "resend_s", "sent")

    def __init__(self, message: Message, future: asyncio.Future[Any]) -> None:
        self.message = message
        self.future = future
        self.sent = self.heard = time.monotonic()
        self.resend_s = 1.0


class Client:
    """Asks the server at `address`, for as long as it takes, and says aloud when it does not answer.

    A request stays in flight under its number through re-sending, reconnecting and restarts of the server, until it is
    answered or the peer has been silent for `net.give_up_s` (PeerLost). `waiting(text | None)` hears whom this client
    waits for.
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
    ) -> None:
        check_address(address, net.security)
        self.address = address
        self.peer = f"{peer} at {address}"
        self._hello = hello
        self._net = net
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._report = waiting or (lambda text: None)
        self._reported: str | None = None
        self._requests: dict[int, _Request] = {}
        self._n = 0
        self.server_life = 0
        self._ready = False
        self._heard = time.monotonic()
        self._stalled = False
        self._hello_backoff = 0.1
        self._next_hello = 0.0
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting for it when it fails: that is no error of its own.
        self._welcome.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._socket = _Socket(zmq.DEALER, self._receive, self._connected)
        self._socket.open(address, bind=False)
        self._waiting(f"waits for the {self.peer}")
        self._tick_handle = asyncio.get_running_loop().call_soon(self._tick)

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
        request = self._requests[n] = _Request(message, asyncio.get_running_loop().create_future())
        request.resend_s = self._net.resend_s
        if len(self._requests) == 1:
            self._heard, self._stalled = request.sent, False
        self._metrics.in_flight.inc()
        try:
            if self._ready:
                self._send(n, request)
            return await request.future
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
        frames = encode(request.message, Envelope(n, self._hello.life, self.server_life, min(self._requests)))
        self._metrics.bytes_out.labels(type(request.message).__name__).inc(nbytes(frames))
        self._socket.send(frames)

    def _say_hello(self) -> None:
        self._next_hello = time.monotonic() + self._hello_backoff * random.uniform(0.5, 1.5)
        self._hello_backoff = min(self._hello_backoff * 1.5, 2.0)
        self._socket.send(encode(self._hello, Envelope(0, self._hello.life, 0, 0)))

    def _connected(self, up: bool) -> None:
        self._ready = False
        if up:
            self._hello_backoff = 0.1
            self._say_hello()
        elif self.server_life:
            log.warning("lost the %s; reconnecting", self.peer)
            self._waiting(f"lost the {self.peer}")

    def _receive(self, frames: list[Any]) -> None:
        try:
            message, envelope = decode(frames)
        except ProtocolError as error:
            self._metrics.errors.labels(error.code).inc()
            log.error("the %s sent %s", self.peer, error)
            return
        self._metrics.bytes_in.labels(type(message).__name__).inc(nbytes(frames))
        self._hear()
        if isinstance(message, Wait):
            self._wait(message, envelope.n)
        elif isinstance(message, Error) and message.code == "new_life":
            if self._ready:
                self._ready = False
                self._say_hello()
        elif envelope.n == 0:
            self._greeted(message)
        elif envelope.sender == self.server_life and (request := self._requests.get(envelope.n)) is not None:
            self._answer(request.future, message)
            self._waiting(None)

    def _hear(self) -> None:
        if self._stalled:
            self._stalled = False
            log.warning("the %s answers again after %.1f s", self.peer, time.monotonic() - self._heard)
        self._heard = time.monotonic()

    def _wait(self, wait: Wait, n: int) -> None:
        self._waiting(f"waits for the {self.peer}: {wait.reason}")
        if n == 0:
            self._next_hello = self._heard + self._net.resend_s
        elif (request := self._requests.get(n)) is not None:
            request.heard = self._heard

    def _greeted(self, message: Message) -> None:
        if isinstance(message, Error):
            for future in self._futures():
                self._answer(future, message)
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
        if silent_s >= self._net.give_up_s:
            error = PeerLost(
                f"the {self.peer} has been silent for {silent_s:.0f} s", "is it running? see net.give_up_s"
            )
            for future in self._futures():
                if not future.done():
                    future.set_exception(error)

    def _futures(self) -> list[asyncio.Future[Any]]:
        return [self._welcome, *(request.future for request in self._requests.values())]
