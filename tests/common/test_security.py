"""CURVE over tcp: who is let in, who is not, and that refusals are counted and said."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from jobs import free_port, until
from prometheus_client import CollectorRegistry

from common.config import NetConfig
from common.errors import ConfigError
from common.messages import PROTOCOL, GetWeights, Hello, NotModified, Welcome
from common.metrics import ServiceMetrics
from common.transport.client import Client
from common.transport.server import Server, Ticket
from common.transport.socket import check_address
from services.control.keys import add_client, make_keys


def answer(ticket: Ticket) -> None:
    ticket.reply(Welcome(PROTOCOL, ticket._server.life) if isinstance(ticket.message, Hello) else NotModified(3))


def free_address() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


class Line:
    """A CURVE server on loopback, and clients of any kind."""

    def __init__(self, keys: Path) -> None:
        self.address = free_address()
        self.registry = CollectorRegistry()
        self._open: list[Any] = []
        net = NetConfig(security="curve", keys=str(keys))
        self._open.append(Server(self.address, answer, net=net, metrics=ServiceMetrics("x", self.registry)))

    def client(self, said: list[str | None], **net: str) -> Client:
        client = Client(
            self.address,
            "learner-server",
            Hello(PROTOCOL, "inference", "inference-0", 7),
            net=NetConfig(**net),
            metrics=ServiceMetrics("x", CollectorRegistry()),
            max_in_flight=1,
            waiting=said.append,
        )
        self._open.append(client)
        return client

    def refused(self) -> float:
        return self.registry.get_sample_value("headrace_x_errors_total", {"code": "refused"}) or 0.0

    def close(self) -> None:
        for opened in self._open:
            opened.close()


@pytest.fixture
async def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    make_keys(folder)
    return folder


@pytest.fixture
async def line(keys: Path) -> AsyncIterator[Line]:
    line = Line(keys)
    yield line
    line.close()


async def test_clients_on_the_list_are_served(line: Line, keys: Path) -> None:
    client = line.client([], security="curve", keys=str(keys))
    assert await client.request(GetWeights(3)) == NotModified(3)
    # A client that is added later needs no restart of the server.
    other = line.client([], security="curve", keys=str(add_client(keys, "host-b")))
    assert await other.request(GetWeights(3)) == NotModified(3)
    assert line.refused() == 0


def a_stranger(keys: Path, tmp_path: Path) -> dict[str, str]:
    """Keys of its own making, and the server's public key."""
    make_keys(tmp_path / "stranger")
    (tmp_path / "stranger" / "server.pub").write_bytes((keys / "server.pub").read_bytes())
    return {"security": "curve", "keys": str(tmp_path / "stranger")}


def one_taken_off_the_list(keys: Path, tmp_path: Path) -> dict[str, str]:
    lines = (keys / "clients").read_text().splitlines(keepends=True)
    (keys / "clients").write_text("".join(line for line in lines if not line.endswith(" client\n")))
    return {"security": "curve", "keys": str(keys)}


def a_plain_client(keys: Path, tmp_path: Path) -> dict[str, str]:
    return {"security": "plain"}


@pytest.mark.parametrize("who", [a_stranger, one_taken_off_the_list, a_plain_client])
async def test_others_are_refused_counted_and_told(
    line: Line,
    keys: Path,
    tmp_path: Path,
    who: Callable[[Path, Path], dict[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_client(keys, "good")
    said: list[str | None] = []
    client = line.client(said, **who(keys, tmp_path))
    await until(lambda: line.refused() > 0, "the refusal to be counted")
    assert "refused a client at tcp://127.0.0.1" in caplog.text
    await until(lambda: any(text and text.startswith("refused by the learner-server") for text in said), "it")
    assert client.server_life == 0
    good = line.client([], security="curve", keys=str(keys / "good"))
    assert await good.request(GetWeights(3)) == NotModified(3)


def unreadable(clients: Path) -> None:
    clients.unlink()
    clients.mkdir()


def not_text(clients: Path) -> None:
    clients.write_bytes(b"\xff\xfe\n")


@pytest.mark.parametrize("spoil", [unreadable, not_text])
async def test_a_list_that_cannot_be_read_lets_nobody_in_until_it_can_be(
    line: Line, keys: Path, tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(keys / "clients", tmp_path / "kept")
    spoil(keys / "clients")
    line.client([], security="curve", keys=str(keys))
    await until(lambda: line.refused() > 0, "the refusal")
    assert f"cannot read the allow-list {keys / 'clients'}" in caplog.text
    shutil.rmtree(keys / "clients", ignore_errors=True)
    shutil.copy(tmp_path / "kept", keys / "clients")
    client = line.client([], security="curve", keys=str(keys))
    assert await client.request(GetWeights(3)) == NotModified(3)


@pytest.mark.parametrize("request_", [[b"1.0"], [b"1.0", b"7", b"", b"\xff", b"", b"CURVE", b"short"]])
async def test_a_malformed_authentication_request_is_refused_and_the_next_is_answered(
    line: Line, keys: Path, request_: list[bytes]
) -> None:
    asker = zmq.Context.instance().socket(zmq.REQ)
    asker.linger = 0
    try:
        asker.connect("inproc://zeromq.zap.01")
        asker.send_multipart(request_)
        await until(lambda: asker.poll(0), "the verdict")
        assert asker.recv_multipart()[2] == b"400"
    finally:
        asker.close()
    client = line.client([], security="curve", keys=str(keys))
    assert await client.request(GetWeights(3)) == NotModified(3)


def test_keys_are_private_and_never_overwritten(keys: Path) -> None:
    assert {p.name for p in keys.iterdir()} == {"server.key", "server.pub", "client.key", "clients"}
    assert (keys / "server.key").stat().st_mode & 0o077 == 0
    assert (keys / "client.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="has keys already"):
        make_keys(keys)
    mine = add_client(keys, "b")
    assert {p.name for p in mine.iterdir()} == {"server.pub", "client.key"}
    with pytest.raises(ConfigError, match="exists already"):
        add_client(keys, "b")


async def test_missing_keys_are_named(tmp_path: Path) -> None:
    net = NetConfig(security="curve", keys=str(tmp_path))
    with pytest.raises(ConfigError, match=r"net\.keys: cannot read .*server\.key.*headrace keys"):
        Server(free_address(), answer, net=net, metrics=ServiceMetrics("x", CollectorRegistry()))


def test_what_leaves_this_machine_is_encrypted_unless_plain_is_asked_for_by_name() -> None:
    assert check_address("tcp://10.0.0.2:5701", NetConfig(keys="k")) is True
    assert check_address("tcp://127.0.0.1:5701", NetConfig(keys="k")) is False
    assert check_address("tcp://127.0.0.1:5701", NetConfig(security="curve", keys="k")) is True
    assert check_address("tcp://10.0.0.2:5701", NetConfig(security="plain", keys="k")) is False
    with pytest.raises(ConfigError, match=r"unencrypted.*net\.keys.*net\.security=plain"):
        check_address("tcp://10.0.0.2:5701", NetConfig())
