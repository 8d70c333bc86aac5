"""A ZeroMQ socket on an asyncio loop: multiparts in and out without blocking, and news of connections.

With security.py the only import of zmq. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from common.config import NetConfig
from common.errors import ConfigError
from common.transport.security import secure_client, secure_server

log = logging.getLogger("headrace.transport")

_BURST = 64
# As plain numbers: arithmetic on pyzmq's enums costs as much as a small send.
_NOW, _NOW_AND_MORE, _READABLE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.POLLIN)
_OPTIONS = {
    zmq.LINGER: 1000,
    zmq.CONNECT_TIMEOUT: 5000,
    zmq.HEARTBEAT_IVL: 10_000,
    # Long: a large frame on a slow link must not look like a dead peer. A process that dies is seen by its disconnect.
    zmq.HEARTBEAT_TIMEOUT: 30_000,
}
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_IPC_PATH_BYTES = 100


def check_address(address: str, net: NetConfig) -> bool:
    """Says whether `address` is to speak CURVE; raises ConfigError for one that would fail later."""
    scheme, _, rest = address.partition("://")
    if scheme == "ipc" and len(rest.encode()) > _IPC_PATH_BYTES:
        raise ConfigError(f"the ipc path {rest} is longer than {_IPC_PATH_BYTES} bytes", "use a shorter directory")
    if scheme in ("inproc", "ipc") and rest:
        return False
    try:
        url = urlsplit(address)
        host = url.hostname if scheme == "tcp" and url.port is not None else None
    except ValueError:
        host = None
    if not host:
        raise ConfigError(f"net address {address!r} is none", "use tcp://host:port, ipc:///path or inproc://name")
    if net.security == "plain" or (net.security == "auto" and _is_loopback(host)):
        return False
    if not net.keys:
        raise ConfigError(
            f"net address {address} would carry unencrypted tcp off this machine",
            "make keys with `headrace keys` and set net.keys, or set net.security=plain if the network is private",
        )
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Socket:
    """A ZeroMQ socket that hands on each multipart it receives, and says when connections come, go or are refused."""

    def __init__(
        self,
        receive: Callable[[list[Any]], None],
        connected: Callable[[bool], None],
        refused: Callable[[], None],
        *,
        serves: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._serves = serves
        self._receive = receive
        self._connected = connected
        self._refused = refused
        self._zmq: zmq.Socket[Any] = zmq.Context.instance().socket(zmq.ROUTER if serves else zmq.DEALER)
        for option, value in _OPTIONS.items():
            self._zmq.setsockopt(option, value)
        # A ROUTER says when a peer is gone; a DEALER without a connection fails to send at once, instead of queueing
        # for a peer that may never come.
        self._zmq.setsockopt(zmq.ROUTER_MANDATORY if serves else zmq.IMMEDIATE, 1)
        # A server counts connections, whatever comes of them; a client speaks once the handshake is done.
        self._up = zmq.EVENT_ACCEPTED if serves else zmq.EVENT_HANDSHAKE_SUCCEEDED
        self._monitor: zmq.Socket[Any] = self._zmq.get_monitor_socket(self._up | zmq.EVENT_DISCONNECTED | _REFUSED)
        self._fds = (int(self._zmq.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD)))
        self._claim = socket.socket(socket.AF_UNIX)
        self._draining = False
        self._closed = False

    def open(self, address: str, net: NetConfig) -> None:
        """Binds or connects, and begins to receive; raises ConfigError if the address or its keys cannot be had."""
        try:
            if check_address(address, net):
                (secure_server if self._serves else secure_client)(self._zmq, Path(net.keys))
            if self._serves:
                if address.startswith("ipc:///") and sys.platform == "linux":
                    # libzmq would take the file of another's socket away. An abstract name is free when its owner dies.
                    folder = Path(address[6:]).parent.stat()  # not its path: there may be several, and other roots
                    self._claim.bind(f"\0{folder.st_dev} {folder.st_ino} {Path(address).name[-64:]}")
                self._zmq.bind(address)
            else:
                # On one machine asking often is cheap; across a network the interval doubles up to 2 s.
                first, last = (100, 2000) if address.startswith("tcp:") else (30, 0)
                self._zmq.setsockopt(zmq.RECONNECT_IVL, first)
                self._zmq.setsockopt(zmq.RECONNECT_IVL_MAX, last)
                self._zmq.connect(address)
        except ConfigError:
            self.close()
            raise
        except (zmq.ZMQError, OSError) as error:
            self.close()
            text = f"cannot {'bind' if self._serves else 'connect'} {address}: {error.strerror}"
            raise ConfigError(text, "stop who has it, or choose another address in net") from error
        self._loop.add_reader(self._fds[0], self._drain)
        self._loop.add_reader(self._fds[1], self._drain_monitor)
        self._loop.call_soon(self._drain)
        self._loop.call_soon(self._drain_monitor)

    def redial(self, address: str) -> None:
        """Gives up a client's connection and makes another; what was being sent on the first is lost."""
        try:
            self._zmq.disconnect(address)
            self._zmq.connect(address)
        except zmq.ZMQError as error:
            log.error("cannot connect %s again: %s", address, error)

    def send(self, frames: list[Any]) -> None:
        """Sends now, or not at all where the peer is not there: who wants an answer asks again."""
        if self._closed:
            return
        with suppress(zmq.ZMQError):
            for frame in frames[:-1]:
                self._zmq.send(frame, _NOW_AND_MORE, copy=False)
            self._zmq.send(frames[-1], _NOW, copy=False)
        # The fd is edge-triggered, and even trying to send may consume the edge of a message that came meanwhile.
        if not self._draining and self._readable():
            self._loop.call_soon(self._drain)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fd in self._fds:
                self._loop.remove_reader(fd)
            self._zmq.disable_monitor()
            self._monitor.close(0)
            self._zmq.close()
            self._claim.close()

    def _readable(self) -> int:
        return int(self._zmq.getsockopt(zmq.EVENTS)) & _READABLE

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        try:
            for _ in range(_BURST):
                # The last message may have closed this socket. To ask costs less than to be refused.
                if self._closed or not self._readable():
                    return
                try:
                    frames = [self._zmq.recv(_NOW, copy=False)]
                except zmq.Again:  # a connection that was lost meanwhile takes what it brought with it
                    return
                while frames[-1].more:
                    frames.append(self._zmq.recv(_NOW, copy=False))
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
            if event["event"] == self._up:
                self._connected(True)
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._connected(False)
            else:
                self._refused()
