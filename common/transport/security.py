"""CURVE for tcp: the files that hold keys, and the gate that lets in only clients on the allow-list.

A keys folder has `server.key` (public and secret, for servers), `server.pub`, `client.key` (public and secret, for
clients) and `clients`, the allow-list: one public key and a name a line. Keys are Z85 text, as ZeroMQ writes them.
`headrace keys` makes them.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from common.errors import ConfigError

log = logging.getLogger("headrace.security")

DOMAIN = "headrace"
_ZAP = "inproc://zeromq.zap.01"


def keypair() -> tuple[bytes, bytes]:
    """Gives a new public key and its secret."""
    return zmq.curve_keypair()


def secure_server(socket: zmq.Socket[Any], folder: Path) -> None:
    """Makes a socket that is yet to bind speak CURVE, to clients on the allow-list of `folder`."""
    _, secret = read_keys(folder / "server.key", 2)
    read_keys(folder / "clients", 1)
    _gate().lists.add(folder / "clients")
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)


def secure_client(socket: zmq.Socket[Any], folder: Path) -> None:
    """Makes a socket that is yet to connect speak CURVE, to the one server that has the secret of `server.pub`."""
    public, secret = read_keys(folder / "client.key", 2)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, read_keys(folder / "server.pub", 1)[0])


class _Gate:
    """Answers ZeroMQ's authentication requests (ZAP, RFC 27) on a thread; the lists are read anew for each client, so
    that a key is added or withdrawn without a restart."""

    def __init__(self) -> None:
        self.lists: set[Path] = set()
        self._socket: zmq.Socket[Any] = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ZAP)
        threading.Thread(target=self._answer_forever, name="zap", daemon=True).start()

    def _answer_forever(self) -> None:
        while True:
            try:
                request = self._socket.recv_multipart()
                self._socket.send_multipart(self._answer(request))
            except zmq.ContextTerminated:
                # The end of the process waits until every socket is closed.
                self._socket.close()
                return

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """Gives the reply to any request whatever: without one no handshake after it would end."""
        version, number, *_ = (*request, b"", b"")
        verdict = (b"400", b"not on the list", b"")
        try:
            _, _, _, address, _, mechanism, *credentials = request
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" else b""
            name = self._name(key)
            if name is None:
                log.warning("refused a client from %s: key %s is not on the list", address.decode(), key.decode())
            else:
                verdict = (b"200", b"OK", name.encode())
        except Exception:
            log.exception("refused a client whose authentication request failed")
        return [version, number, *verdict, b""]

    def _name(self, key: bytes) -> str | None:
        # A copy: another thread may be adding a list.
        for path in self.lists.copy():
            try:
                lines = path.read_text().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                log.error("cannot read the allow-list %s, so nobody on it is let in: %s", path, error)
                continue
            for line in lines:
                allowed, _, name = line.partition(" ")
                if allowed.encode() == key:
                    return name
        return None


@cache
def _gate() -> _Gate:
    """There is one ZAP address in a process, so there is one gate."""
    return _Gate()


def read_keys(path: Path, least: int) -> list[bytes]:
    """Gives the lines of one of the files; raises ConfigError where it has not at `least` so many."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"net.keys: cannot read {path}: {error.strerror}", "make keys with `headrace keys`") from None
    if len(lines) < least:
        raise ConfigError(f"net.keys: {path} is incomplete", "make keys with `headrace keys`")
    return lines
