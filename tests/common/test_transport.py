import asyncio
import contextlib
import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from jobs import PATIENCE_S, free_port, short_dir, until
from prometheus_client import CollectorRegistry
from proxies import Proxy, send_all

from common.codec import Envelope, decode, encode
from common.config import NetConfig
from common.errors import ConfigError, Finished, PeerLost, ProtocolError, RemoteError
from common.messages import PROTOCOL, Act, Actions, Error, GetWeights, Hello, Inserted, NotModified, Ok, Sample, Welcome
from common.metrics import ServiceMetrics
from common.transport import client, server
from common.transport.client import Client
from common.transport.server import Server, Ticket
from common.transport.socket import check_address
from common.types import new_life

NET = NetConfig(resend_s=0.15, deadline_s=0.5, give_up_s=30.0)
Handle = Callable[[Ticket], None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TICK_S", 0.02)
    monkeypatch.setattr(server, "TICK_S", 0.02)
    monkeypatch.setattr(server, "WAIT_EVERY_S", 0.1)


@pytest.fixture
def ipc() -> Iterator[str]:
    with short_dir() as path:
        yield f"ipc://{path}/server"


@pytest.fixture(params=["inproc", "ipc", "tcp"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "inproc":
        yield "inproc://server"
    elif request.param == "ipc":
        with short_dir() as path:
            yield f"ipc://{path}/server"
    else:
        yield f"tcp://127.0.0.1:{free_port()}"


class Bench:
    """The servers and clients of one test, each with its metrics; all are closed at its end."""

    def __init__(self) -> None:
        self._open: list[Server | Client] = []
        self._registries: dict[Server | Client, CollectorRegistry] = {}

    def server(self, address: str, handle: Handle, **options: Any) -> Server:
        registry = CollectorRegistry()
        return self._keep(Server(address, handle, net=NET, metrics=ServiceMetrics("x", registry), **options), registry)

    def client(
        self, address: str, name: str = "env-0", *, life: int = 7, net: NetConfig = NET, **options: Any
    ) -> Client:
        registry = CollectorRegistry()
        options = {"max_in_flight": 4, "hello": Hello(PROTOCOL, "env", name, life), **options}
        return self._keep(
            Client(address, "replay-server", net=net, metrics=ServiceMetrics("x", registry), **options), registry
        )

    def count(self, of: Server | Client, name: str, **labels: str) -> float:
        return self._registries[of].get_sample_value(f"headrace_x_{name}", labels) or 0.0

    def close(self) -> None:
        for opened in self._open:
            opened.close()

    def _keep(self, opened: Any, registry: CollectorRegistry) -> Any:
        self._open.append(opened)
        self._registries[opened] = registry
        return opened


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


class Desk:
    """A handler that welcomes, answers Sample n with NotModified(n), and parks or counts what it is told to."""

    def __init__(self) -> None:
        self.handled: list[Any] = []
        self.parked: list[Ticket] = []
        self.park = False

    def __call__(self, ticket: Ticket) -> None:
        message = ticket.message
        if isinstance(message, Hello):
            ticket.reply(Welcome(PROTOCOL, ticket._server.life))
            return
        self.handled.append(message)
        if self.park:
            ticket.reason = "the table is full"
            self.parked.append(ticket)
        elif isinstance(message, Sample):
            ticket.reply(NotModified(message.n))
        else:
            ticket.reply(Ok())


def ask(n: int = 1) -> Sample:
    return Sample("experience", n, 0)


async def test_a_request_is_answered_whatever_the_address(bench: Bench, address: str) -> None:
    def double(ticket: Ticket) -> None:
        if isinstance(ticket.message, Act):
            ticket.reply(Actions(9, {name: np.asarray(array * 2) for name, array in ticket.message.arrays.items()}))
        else:
            ticket.reply(Welcome(PROTOCOL, server.life, {"answers": ticket.message.name}))

    client = bench.client(address)
    server = bench.server(address, double)
    assert await client.welcome() == Welcome(PROTOCOL, server.life, {"answers": "env-0"})
    big = np.arange(200_000, dtype=np.float32).reshape(2, -1)
    actions = await client.request(Act(0, 1, 0, 0, {"big": big.T, "one": np.array(3.0), "none": np.zeros((0, 2))}))
    assert actions.version == 9
    assert actions.arrays["big"].tolist() == (2 * big.T).tolist()
    assert (actions.arrays["one"], actions.arrays["one"].shape) == (6.0, ())
    assert actions.arrays["none"].shape == (0, 2)


async def test_requests_in_flight_are_answered_in_any_order(bench: Bench, address: str) -> None:
    desk = Desk()
    desk.park = True
    bench.server(address, desk)
    client = bench.client(address)
    requests = [asyncio.create_task(client.request(ask(n))) for n in range(4)]
    await until(lambda: len(desk.parked) == 4, "four requests parked")
    for ticket in reversed(desk.parked):
        ticket.reply(NotModified(10 * ticket.message.n))  # type: ignore[union-attr]
    assert [reply.version for reply in await asyncio.gather(*requests)] == [0, 10, 20, 30]


async def test_a_parked_request_is_kept_alive_by_waits_that_say_why(bench: Bench, ipc: str) -> None:
    desk, heard = Desk(), []
    desk.park = True
    bench.server(ipc, desk)
    net = NET.model_copy(update={"deadline_s": 1.0, "give_up_s": 1.5, "resend_s": 1.2})
    client = bench.client(ipc, net=net, waiting=heard.append)
    request = asyncio.create_task(client.request(ask(3)))
    await until(lambda: desk.parked, "the request")
    ticket, since = desk.parked[0], time.monotonic()
    await until(lambda: time.monotonic() - since > 2.0, "twice the time a silent peer is given")
    ticket.reply(NotModified(3))
    assert await request == NotModified(3)
    assert len(desk.handled) == 1
    assert bench.count(client, "stalled_peers_total") == 0
    assert bench.count(client, "resent_requests_total") == 0
    assert f"waits for the replay-server at {ipc}: the table is full" in heard
    assert heard[-1] is None


async def test_a_request_whose_reply_is_lost_is_sent_again_and_applied_once(bench: Bench, ipc: str) -> None:
    desk = Desk()
    bench.server(ipc, desk)
    with Proxy(f"{ipc}-proxy", ipc) as proxy:
        proxy.drop_reply(NotModified)
        proxy.drop_reply(Welcome)
        # Seldom enough that no answer to a second sending is waited for so long: there would be a third.
        net = NET.model_copy(update={"resend_s": 1.0, "deadline_s": 10.0})
        client = bench.client(f"{ipc}-proxy", net=net)
        assert await client.request(ask(5)) == NotModified(5)
        assert desk.handled == [ask(5)]
        assert bench.count(client, "resent_requests_total") == 1
        assert client._resend_s == net.resend_s, "what was lost says nothing of how long answers take"
        assert proxy.dropped == {"NotModified": 1, "Welcome": 1}
        assert proxy.requests["Sample"] == 2


class Raw:
    """A DEALER of its own, to send what no Client would, and to read what comes back."""

    def __init__(self, address: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    async def receive(self) -> tuple[Any, Envelope]:
        await until(lambda: self.socket.poll(0), "a reply")
        return decode(self.socket.recv_multipart())

    async def greet(self, hello: Hello) -> Any:
        self.socket.send_multipart(encode(hello, Envelope(0, hello.life, 0, 0)))
        return (await self.receive())[0]


async def test_a_repeated_request_number_gets_the_first_answer_again(bench: Bench, ipc: str) -> None:
    desk = Desk()
    server = bench.server(ipc, desk)
    with Raw(ipc) as raw:
        await raw.greet(Hello(PROTOCOL, "env", "env-0", 7))
        for n in (1, 1, 1):
            raw.socket.send_multipart(encode(ask(4), Envelope(n, 7, server.life, 1)))
        replies = [await raw.receive() for _ in range(3)]
        assert replies == [(NotModified(4), Envelope(1, server.life, 7, 0))] * 3
        assert len(desk.handled) == 1
        # Acknowledged: were it late on its way, it would not be applied again either.
        raw.socket.send_multipart(encode(ask(5), Envelope(2, 7, server.life, 2)))
        raw.socket.send_multipart(encode(ask(4), Envelope(1, 7, server.life, 1)))
        raw.socket.send_multipart(encode(ask(6), Envelope(3, 7, server.life, 3)))
        assert [(await raw.receive())[0] for _ in range(2)] == [NotModified(5), NotModified(6)]
        assert len(desk.handled) == 3


async def test_a_request_to_another_life_of_the_server_is_not_handled(bench: Bench, ipc: str) -> None:
    desk = Desk()
    server = bench.server(ipc, desk)
    with Raw(ipc) as raw:
        await raw.greet(Hello(PROTOCOL, "env", "env-0", 7))
        raw.socket.send_multipart(encode(ask(4), Envelope(1, 7, server.life + 1, 1)))
        assert (await raw.receive())[0] == Error("new_life", "say Hello first")
        assert desk.handled == []


async def test_a_server_forgets_the_replies_that_are_acknowledged(bench: Bench, address: str) -> None:
    server = bench.server(address, Desk())
    client = bench.client(address)
    for n in range(100):
        await client.request(ask(n))
    assert len(server._peers[7].done) == 1


async def test_a_server_forgets_the_replies_of_clients_that_have_gone(
    bench: Bench, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = bench.server(address, Desk())
    await bench.client(address).request(ask(1))
    assert len(server._peers[7].done) == 1
    monkeypatch.setattr("common.transport.server.FORGET_S", 0.0)
    await until(lambda: not server._peers[7].done, "nothing to be kept")


async def test_a_new_life_of_the_server_answers_what_the_old_one_left(bench: Bench, ipc: str) -> None:
    old, new = Desk(), Desk()
    old.park = True
    first = bench.server(ipc, old)
    client = bench.client(ipc)
    requests = [asyncio.create_task(client.request(ask(n))) for n in (1, 2)]
    await until(lambda: len(old.parked) == 2, "both requests")
    first.close()
    second = bench.server(ipc, new)
    assert await asyncio.gather(*requests) == [NotModified(1), NotModified(2)]
    assert client.server_life == second.life != first.life
    assert new.handled == [ask(1), ask(2)]


async def test_a_server_that_restarts_behind_a_standing_connection_is_greeted_anew(bench: Bench, ipc: str) -> None:
    first = bench.server(ipc, Desk())
    with Proxy(f"{ipc}-proxy", ipc):
        client = bench.client(f"{ipc}-proxy")
        assert await client.request(ask(1)) == NotModified(1)
        first.close()
        second = bench.server(ipc, Desk())
        assert await client.request(ask(2)) == NotModified(2)
        assert client.server_life == second.life


async def test_a_reply_of_an_earlier_life_is_dropped(bench: Bench, ipc: str) -> None:
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.linger = 0
    router.bind(ipc)
    try:
        client = bench.client(ipc, net=NetConfig(resend_s=60.0))

        async def receive() -> tuple[bytes, Any, Envelope]:
            await until(lambda: router.poll(0), "a request")
            identity, *frames = router.recv_multipart()
            return identity, *decode(frames)

        identity, hello, _ = await receive()
        assert hello == Hello(PROTOCOL, "env", "env-0", 7)
        router.send_multipart([identity, *encode(Welcome(PROTOCOL, 22), Envelope(0, 22, 7, 0))])
        request = asyncio.create_task(client.request(ask()))
        # The client says Hello until it is answered, so another may be on its way already.
        while (received := await receive())[1] == hello:
            pass
        assert received[1:] == (ask(), Envelope(1, 7, 22, 1))
        router.send_multipart([identity, *encode(NotModified(11), Envelope(1, 11, 7, 0))])
        router.send_multipart([identity, *encode(NotModified(22), Envelope(1, 22, 7, 0))])
        assert await request == NotModified(22)
    finally:
        router.close()


async def test_a_new_life_of_a_client_takes_the_place_of_the_old_one(bench: Bench, ipc: str) -> None:
    desk = Desk()
    desk.park = True
    server = bench.server(ipc, desk)
    old = bench.client(ipc, life=7, waiting=None)
    lost = asyncio.create_task(old.request(ask(1)))
    await until(lambda: desk.parked, "the old one's request")
    assert bench.count(server, "requests_parked") == 1
    old.close()
    new = bench.client(ipc, life=8)
    await new.welcome()
    assert bench.count(server, "requests_parked") == 0
    desk.parked[0].reply(Ok())
    assert bench.count(server, "sent_bytes_total", kind="Ok") == 0
    desk.park = False
    assert await new.request(ask(2)) == NotModified(2)
    lost.cancel()


async def test_of_two_living_clients_of_one_name_the_first_ends_and_the_second_is_served(
    bench: Bench, address: str
) -> None:
    desk = Desk()
    desk.park = True
    server = bench.server(address, desk)
    # It sends nothing again by itself: the answer to its last request ends the others too.
    first = bench.client(address, life=7, net=NET.model_copy(update={"resend_s": 60.0, "deadline_s": 60.0}))
    parked = [asyncio.create_task(first.request(ask(n))) for n in (1, 2)]
    await until(lambda: len(desk.parked) == 2, "the first one's requests")
    desk.park = False
    second = bench.client(address, life=8)
    assert await second.request(ask(3)) == NotModified(3)
    for request in (first.request(ask(4)), *parked):
        with pytest.raises(
            RemoteError, match=r"another env-0 has taken this one's place \(give each its own"
        ) as caught:
            await asyncio.wait_for(request, 10.0)
        assert caught.value.code == "replaced"
    assert await second.request(ask(5)) == NotModified(5)
    assert desk.handled == [ask(1), ask(2), ask(3), ask(5)]
    assert list(server._peers) == [8]


async def test_a_client_that_is_refused_takes_nobodys_place_and_is_owed_nothing(bench: Bench, address: str) -> None:
    def handle(ticket: Ticket) -> None:
        if isinstance(ticket.message, Hello) and ticket.message.spec is not None:
            raise ProtocolError("env-0 runs another environment", "run one environment")
        desk(ticket)

    desk = Desk()
    server = bench.server(address, handle)
    first = bench.client(address, life=7)
    assert await first.request(ask(1)) == NotModified(1)
    second = bench.client(address, hello=Hello(PROTOCOL, "env", "env-0", 8, {"id": "other"}))
    with pytest.raises(RemoteError, match="another environment"):
        await second.welcome()
    assert await first.request(ask(2)) == NotModified(2)
    with Raw(address) as raw:
        raw.socket.send_multipart(encode(ask(3), Envelope(1, 8, server.life, 1)))
        assert (await raw.receive())[0].code == "new_life"
    assert desk.handled == [ask(1), ask(2)]


async def test_of_lives_that_wait_for_their_welcome_the_last_is_served(bench: Bench, ipc: str) -> None:
    def handle(ticket: Ticket) -> None:
        if isinstance(ticket.message, Hello):
            parked.append(ticket)
        else:
            desk(ticket)

    desk, parked = Desk(), list[Ticket]()
    server = bench.server(ipc, handle)
    old = bench.client(ipc, life=7)
    await until(lambda: len(parked) == 1, "the first Hello")
    new = bench.client(ipc, life=8)
    await until(lambda: len(parked) == 2, "the second Hello")
    for ticket in parked:
        ticket.welcome()
    assert await new.request(ask(1)) == NotModified(1)
    await old.welcome()
    with pytest.raises(RemoteError, match="taken this one's place"):
        await old.request(ask(2))
    assert list(server._peers) == [8]


async def test_a_replaced_client_that_says_hello_again_is_turned_away(bench: Bench, ipc: str) -> None:
    server = bench.server(ipc, Desk())
    await bench.client(ipc, life=7).welcome()
    await bench.client(ipc, life=8).welcome()
    again = bench.client(ipc, life=7)
    with pytest.raises(RemoteError) as caught:
        await again.welcome()
    assert caught.value.code == "replaced"
    assert list(server._peers) == [8]


async def test_only_the_latest_replaced_lives_are_remembered(
    bench: Bench, ipc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_REPLACED", 3)
    served = bench.server(ipc, Desk())
    with Raw(ipc) as raw:
        for life in range(1, 9):
            assert await raw.greet(Hello(PROTOCOL, "env", "env-0", life)) == Welcome(PROTOCOL, served.life)
    assert list(served._replaced) == [5, 6, 7]


class Line:
    """A tcp forwarder whose connections can be cut off without being closed, as by a NAT that forgets them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._dead: set[asyncio.StreamWriter] = set()
        self.accepted = 0

    async def open(self) -> str:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self._dead.update(self._writers)

    async def close(self) -> None:
        self._listener.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.append(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if sink not in self._dead:
                    sink.write(data)


async def test_a_tcp_connection_that_leads_nowhere_is_made_again(bench: Bench) -> None:
    desk = Desk()
    port = free_port()
    bench.server(f"tcp://127.0.0.1:{port}", desk)
    line = Line(port)
    try:
        client = bench.client(await line.open())
        assert await client.request(ask(1)) == NotModified(1)
        line.cut()
        assert await asyncio.wait_for(client.request(ask(2)), 10.0) == NotModified(2)
        assert line.accepted == 2
        assert desk.handled == [ask(1), ask(2)]
        client.close()
    finally:
        await line.close()


async def test_a_stalled_server_is_named_within_the_deadline_and_heard_when_it_returns(
    bench: Bench, ipc: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str | None] = []
    bench.server(ipc, Desk())
    with Proxy(f"{ipc}-proxy", ipc) as proxy:
        client = bench.client(f"{ipc}-proxy", waiting=heard.append)
        await client.welcome()
        proxy.stall()
        since = time.monotonic()
        request = asyncio.create_task(client.request(ask(6)))
        text = f"no answer from the replay-server at {ipc}-proxy to Sample for 0 s"
        await until(lambda: text.replace(" 0 s", "") in str(heard[-1]), "the report")
        assert NET.deadline_s <= time.monotonic() - since < NET.give_up_s
        assert bench.count(client, "stalled_peers_total") == 1
        assert not request.done()
        proxy.resume()
        assert await request == NotModified(6)
        assert heard[-1] is None
        assert "answers again" in caplog.text


# Arguments: the address, how many requests, and for how long something then holds up its event loop.
ASKS = """
import asyncio, sys, time
from prometheus_client import CollectorRegistry
from common.config import NetConfig
from common.messages import PROTOCOL, Hello, Ok
from common.metrics import ServiceMetrics
from common.transport.client import Client

def hold(seconds):
    print("held", flush=True)
    time.sleep(seconds)

async def ask():
    net, metrics = NetConfig(give_up_s=3.0), ServiceMetrics("x", CollectorRegistry())
    hello = Hello(PROTOCOL, "env", "env-0", 7)
    client = Client(sys.argv[1], "replay-server", hello, net=net, metrics=metrics, max_in_flight=2)
    if len(sys.argv) > 3:
        asyncio.get_running_loop().call_later(1.0, hold, float(sys.argv[3]))
    for answer in asyncio.as_completed([client.request(Ok()) for _ in range(int(sys.argv[2]))]):
        print(*await asyncio.gather(answer, return_exceptions=True), flush=True)

asyncio.run(ask())
"""


async def test_the_time_in_which_a_client_itself_was_stopped_is_no_silence_of_its_server(
    bench: Bench, ipc: str
) -> None:
    desk = Desk()
    desk.park = True
    bench.server(ipc, desk)
    with subprocess.Popen([sys.executable, "-c", ASKS, ipc, "1"], stdout=subprocess.PIPE) as process:
        try:
            await until(lambda: desk.parked, "its request")
            process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            await until(lambda: time.monotonic() > stopped + 4.0, "longer than it waits for its server")
            process.send_signal(signal.SIGCONT)
            went_on = time.monotonic()
            await until(lambda: process.poll() is not None or time.monotonic() > went_on + 1.0, "its first ticks")
            desk.parked[0].reply(NotModified(1))
            said, _ = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
            assert said.decode().strip() == f"{NotModified(1)}"
        finally:
            process.kill()


async def test_a_server_that_dies_after_a_client_was_held_up_is_noticed_as_soon_as_ever(bench: Bench, ipc: str) -> None:
    desk = Desk()
    desk.park = True
    server = bench.server(ipc, desk)
    # Twice as long as it waits for its server.
    with subprocess.Popen([sys.executable, "-c", ASKS, ipc, "2", "6"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
            await until(lambda: len(desk.parked) == 2, "its requests")
            # The client hears it before it knows for how long it was held up.
            desk.parked[0].reply(NotModified(1))
            assert (await asyncio.to_thread(process.stdout.readline)).decode().strip() == f"{NotModified(1)}"
            server.close()
            died = time.monotonic()
            assert b"has been silent for 3 s" in await asyncio.to_thread(process.stdout.readline)
            assert time.monotonic() - died < 6.0
        finally:
            process.kill()


async def test_a_peer_silent_for_too_long_is_lost(bench: Bench, ipc: str) -> None:
    net = NET.model_copy(update={"deadline_s": 0.1, "give_up_s": 0.3})
    client = bench.client(ipc, net=net)
    with pytest.raises(PeerLost, match=f"the replay-server at {ipc} has been silent for") as caught:
        await client.request(ask())
    assert caught.value.exit_code == 3
    with pytest.raises(PeerLost):
        await client.welcome()
    assert bench.count(client, "requests_in_flight") == 0


@pytest.mark.parametrize(
    ("answer", "error", "exit_code"),
    [
        (Error("finished", "500 reached", "rest"), Finished, 0),
        (Error("config", "another network", "mend it"), RemoteError, 2),
        (Error("protocol", "no such table", "name one"), RemoteError, 1),
    ],
)
async def test_an_error_reply_raises_what_it_means(
    bench: Bench, ipc: str, answer: Error, error: type[Finished | RemoteError], exit_code: int
) -> None:
    bench.server(ipc, lambda ticket: ticket.reply(answer))
    client = bench.client(ipc)
    with pytest.raises(error) as caught:
        await client.welcome()
    assert (caught.value.message, caught.value.remedy) == (answer.message, answer.remedy)
    assert (caught.value.code, caught.value.exit_code) == (answer.code, exit_code)


async def test_a_finished_server_tells_those_who_wait_and_those_to_come(bench: Bench, ipc: str) -> None:
    desk = Desk()
    desk.park = True
    server = bench.server(ipc, desk)
    client = bench.client(ipc)
    parked = asyncio.create_task(client.request(ask()))
    await until(lambda: desk.parked, "the request")
    server.finish("the job is done")
    for request in (parked, client.request(ask())):
        with pytest.raises(Finished, match="the job is done"):
            await request
    late = bench.client(ipc, "env-1", life=8)
    with pytest.raises(Finished, match="the job is done"):
        await late.welcome()
    assert len(desk.handled) == 1


async def test_a_server_is_drained_when_its_clients_have_left(bench: Bench, ipc: str) -> None:
    server = bench.server(ipc, Desk())
    clients = [bench.client(ipc, f"env-{life}", life=life) for life in (1, 2)]
    await asyncio.gather(*(client.welcome() for client in clients))
    draining = asyncio.create_task(server.drained(30.0))
    clients[0].close()
    done, _ = await asyncio.wait([draining], timeout=0.1)
    assert not done
    clients[1].close()
    await asyncio.wait_for(draining, 10.0)


async def test_a_server_within_the_process_waits_for_nobody_to_leave(bench: Bench) -> None:
    server = bench.server("inproc://drained", Desk())
    await bench.client("inproc://drained", "env-1", life=1).welcome()
    await asyncio.wait_for(server.drained(30.0), 10.0)


async def test_versions_of_the_protocol_that_differ_are_both_named(bench: Bench, ipc: str) -> None:
    bench.server(ipc, Desk())
    client = bench.client(ipc, hello=Hello(PROTOCOL + 1, "env", "env-0", 7))
    said = f"env-0 speaks protocol {PROTOCOL + 1}, this server speaks {PROTOCOL}"
    with pytest.raises(RemoteError, match=said) as caught:
        await client.welcome()
    assert caught.value.code == "protocol_version"


async def test_more_requests_in_flight_than_allowed_are_refused(bench: Bench, ipc: str) -> None:
    desk = Desk()
    desk.park = True
    bench.server(ipc, desk)
    client = bench.client(ipc, max_in_flight=1)
    first = asyncio.create_task(client.request(ask()))
    await until(lambda: desk.parked, "the request")
    with pytest.raises(RuntimeError, match="more than 1 requests in flight"):
        await client.request(ask())
    desk.parked[0].reply(Ok())
    assert await first == Ok()


async def test_a_handler_that_fails_answers_with_an_error_and_goes_on(
    bench: Bench, ipc: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(ticket: Ticket) -> None:
        match ticket.message:
            case Hello():
                ticket.reply(Welcome(PROTOCOL, server.life))
            case Sample(n=1):
                raise ProtocolError("no such table", "name one")
            case Sample(n=2):
                raise ZeroDivisionError("by nothing")
            case Sample(n=3):
                ticket.reply(Actions(0, {"text": np.array(["no wire for this"])}))
            case Sample(n=4):
                raise ProtocolError("x" * 100_000)
            case _:
                ticket.reply(Ok())

    server = bench.server(ipc, handle)
    client = bench.client(ipc)
    expected = [("protocol", "no such table"), ("internal", "ZeroDivisionError: by nothing")]
    expected += [("internal", "TypeError: arrays of dtype <U16 cannot be sent"), ("protocol", "x" * 4000)]
    for n, (code, message) in enumerate(expected, 1):
        with pytest.raises(RemoteError) as caught:
            await client.request(ask(n))
        assert (caught.value.code, caught.value.message) == (code, message)
    assert "ZeroDivisionError" in caplog.text
    assert await client.request(ask(5)) == Ok()
    assert bench.count(server, "errors_total", code="internal") == 2
    assert bench.count(server, "requests_parked") == 0


async def test_of_an_answer_that_cannot_be_sent_hears_who_asked_and_not_who_made_it_due(bench: Bench, ipc: str) -> None:
    def handle(ticket: Ticket) -> None:
        desk(ticket)
        if ticket.message == ask(2):
            desk.parked[0].reply(Error("x" * 70_000, "too long"))
            ticket.reply(NotModified(2))

    desk = Desk()
    desk.park = True
    bench.server(ipc, handle)
    client = bench.client(ipc)
    first = asyncio.create_task(client.request(ask(1)))
    await until(lambda: desk.parked, "the first request")
    assert await client.request(ask(2)) == NotModified(2)
    with pytest.raises(RemoteError, match="max_str_len"):
        await asyncio.wait_for(first, 10.0)


async def test_a_request_that_cannot_be_sent_leaves_nothing_in_flight(bench: Bench, ipc: str) -> None:
    bench.server(ipc, Desk())
    client = bench.client(ipc, max_in_flight=1)
    await client.welcome()
    with pytest.raises(TypeError, match="cannot be sent"):
        await client.request(Act(0, 1, 0, 0, {"text": np.array(["a"])}))
    assert bench.count(client, "requests_in_flight") == 0
    assert await client.request(ask(2)) == NotModified(2)


async def test_a_request_that_cannot_be_sent_fails_also_when_the_server_comes_later(bench: Bench, ipc: str) -> None:
    client = bench.client(ipc)
    bad = asyncio.create_task(client.request(Sample("x" * 70_000, 1, 0)))
    good = asyncio.create_task(client.request(ask(2)))
    await until(lambda: len(client._requests) == 2, "both are asked")
    bench.server(ipc, Desk())
    with pytest.raises(ProtocolError, match="max_str_len"):
        await bad
    assert await good == NotModified(2)


async def test_messages_behind_one_that_fails_are_still_read(
    bench: Bench, ipc: str, caplog: pytest.LogCaptureFixture
) -> None:
    def waiting(text: str | None) -> None:
        if text is not None and "full" in text:
            raise RuntimeError("nobody can hear it")

    desk = Desk()
    bench.server(ipc, desk)
    client = bench.client(ipc, waiting=waiting)
    await client.welcome()
    desk.park = True
    requests = [asyncio.create_task(client.request(ask(n))) for n in (1, 2)]
    await until(lambda: len(desk.parked) == 2, "both requests")
    await until(lambda: "nobody can hear it" in caplog.text, "a Wait that fails")
    for ticket in desk.parked:
        ticket.reply(Ok())
    assert await asyncio.gather(*requests) == [Ok(), Ok()]


async def test_bytes_and_requests_are_counted_on_both_sides(bench: Bench, ipc: str) -> None:
    server = bench.server(ipc, Desk())
    # Nothing is sent twice, however busy the machine.
    client = bench.client(ipc, net=NET.model_copy(update={"resend_s": 60.0}))
    await client.request(ask())
    for kind, side, other in (("Sample", client, server), ("NotModified", server, client)):
        sent = bench.count(side, "sent_bytes_total", kind=kind)
        received = bench.count(other, "received_bytes_total", kind=kind)
        assert sent >= 17
        assert 0 <= received - sent <= 5  # a ROUTER sees the sender's identity too
    assert bench.count(client, "requests_in_flight") == 0
    assert bench.count(server, "requests_parked") == 0


async def test_an_address_in_use_is_a_config_error(bench: Bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"cannot bind {address}: Address already in use"):
            bench.server(address, Desk())


SERVES = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from common.config import NetConfig
from common.metrics import ServiceMetrics
from common.transport.server import Server

async def serve():
    metrics = ServiceMetrics("x", CollectorRegistry())
    server = Server(sys.argv[1], lambda ticket: ticket.welcome(), net=NetConfig(), metrics=metrics)
    print(server.life, flush=True)
    await asyncio.Event().wait()

asyncio.run(serve())
"""


async def test_a_second_server_at_an_ipc_address_is_refused_until_the_first_one_has_died(
    bench: Bench, ipc: str
) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVES, ipc], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            life = int(await asyncio.to_thread(process.stdout.readline))
            with pytest.raises(ConfigError, match=f"cannot bind {ipc}: Address already in use .*stop who has it"):
                bench.server(ipc, Desk())
            path = Path(ipc.removeprefix("ipc://"))
            (path.parent / "link").symlink_to(path.parent)
            with pytest.raises(ConfigError, match="Address already in use"):
                bench.server(f"ipc://{path.parent}/link/{path.name}", Desk())
            assert (await bench.client(ipc).welcome()).life == life
        finally:
            process.kill()
    second = bench.server(ipc, Desk())
    assert (await bench.client(ipc, "env-1", life=8).welcome()).life == second.life


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ipc:///tmp/" + "x" * 120, "longer than 100 bytes"),
        ("ipc:///tmp/" + "\u00e9" * 50, "longer than 100 bytes"),
        ("tcp://10.0.0.2:5701", "would carry unencrypted tcp off this machine.*net.security=plain"),
        ("tcp://replay:5701", "would carry unencrypted tcp off this machine"),
        ("tcp://*:5701", "would carry unencrypted tcp off this machine"),
        ("tcp://0.0.0.0:5701", "would carry unencrypted tcp off this machine"),
        ("tcp://127.0.0.1", "is none"),
        ("tcp://:5701", "is none"),
        ("tcp://[::1", "is none"),
        ("tcp://127.0.0.1:port", "is none"),
        ("udp://127.0.0.1:5701", "is none"),
        ("127.0.0.1:5701", "is none"),
        ("ipc://", "is none"),
        ("", "is none"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_address(address, NetConfig())


@pytest.mark.parametrize(
    ("address", "security"),
    [
        ("inproc://act", "auto"),
        ("ipc:///tmp/x/act", "auto"),
        ("tcp://127.0.0.1:5701", "auto"),
        ("tcp://localhost:5701", "auto"),
        ("tcp://[::1]:5701", "auto"),
        ("tcp://replay:5701", "plain"),
    ],
)
def test_an_address_that_can_be_used_is_taken(address: str, security: str) -> None:
    assert check_address(address, NetConfig(security=security)) is False


def garbage(seed: int, lives: list[int], server_life: int) -> Iterator[list[Any]]:
    """Gives random multiparts for ever: random bytes, damaged messages, and whole ones that mean nothing here."""
    rng = random.Random(seed)
    good: list[Any] = [ask(), GetWeights(1), Inserted(3), Act(0, 2, 0, 0, {"first": np.ones(2, bool)}), Ok()]
    for n in itertools.count(1):
        if rng.random() < 0.3:
            yield [rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(1, 4))]
            continue
        envelope = Envelope(n, rng.choice(lives), server_life, n)
        frames = [bytearray(memoryview(frame)) for frame in encode(rng.choice(good), envelope)]
        if rng.random() < 0.9:
            frame = rng.choice(frames)
            frame[rng.randrange(len(frame))] ^= rng.randrange(1, 256)
        yield frames


async def test_a_server_survives_100_000_random_multiparts(bench: Bench, ipc: str) -> None:
    desk = Desk()
    server = bench.server(ipc, desk)
    client = bench.client(ipc, life=new_life())
    await client.welcome()
    with Raw(ipc) as raw:
        lives = [new_life() for _ in range(200)]
        for i, life in enumerate(lives, 1):
            await raw.greet(Hello(PROTOCOL, "env", f"env-{i}", life))
        await send_all(raw.socket, itertools.islice(garbage(1, lives, server.life), 100_000))
        assert await client.request(ask(9)) == NotModified(9)
    await until(lambda: not server._connections - 1, "all of it is read")
    assert bench.count(server, "errors_total", code="protocol") > 30_000
    assert len(desk.handled) > 1_000
    assert bench.count(server, "requests_parked") == 0


@contextlib.asynccontextmanager
async def narrow(to: int, rate: int) -> AsyncIterator[int]:
    """Gives a port from which `rate` bytes a second reach port `to`; answers are not held back."""
    relays: set[asyncio.Task[Any]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, per_s: float) -> None:
        try:
            while data := await reader.read(rate // 50):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) / per_s)
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.add(asyncio.current_task())  # type: ignore[arg-type]
        back, forth = await asyncio.open_connection("127.0.0.1", to)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pass_on(reader, forth, rate), pass_on(back, writer, 1e12))

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    listening.bind(("127.0.0.1", 0))
    async with await asyncio.start_server(relay, sock=listening):
        yield listening.getsockname()[1]
    await asyncio.wait(relays)


async def test_a_message_that_takes_longer_than_the_deadline_gets_through_once_redials_are_rare(bench: Bench) -> None:
    desk, port = Desk(), free_port()
    bench.server(f"tcp://127.0.0.1:{port}", desk)
    # At most six deadlines long on an idle machine: redials after 0.5, 1, 2 and 4 s leave it time enough.
    async with narrow(port, rate=2_000_000) as narrow_port:
        client = bench.client(f"tcp://127.0.0.1:{narrow_port}")
        await client.welcome()
        large = Act(0, 1, 0, 0, {"x": np.zeros(5_000_000, np.uint8)})
        assert await asyncio.wait_for(client.request(large), 60.0) == Ok()
        assert len(desk.handled) == 1
        # Its repeats are answered too, and say that the next of its kind must be given longer.
        await until(lambda: client._resend_s > NET.resend_s, "a second answer")
        client.close()


async def test_a_peer_that_greets_but_never_answers_is_given_up(bench: Bench, ipc: str) -> None:
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.linger = 0
    router.bind(ipc)

    async def greet() -> None:
        while True:
            await until(lambda: router.poll(0), "a message")
            identity, *frames = router.recv_multipart()
            if isinstance(decode(frames)[0], Hello):
                router.send_multipart([identity, *encode(Welcome(PROTOCOL, 22), Envelope(0, 22, 7, 0))])

    greeting = asyncio.create_task(greet())
    try:
        client = bench.client(ipc, net=NET.model_copy(update={"deadline_s": 0.1, "give_up_s": 0.5}))
        await client.welcome()
        request = asyncio.create_task(client.request(ask()))

        async def reconnect() -> None:
            while not request.done():
                client._connected(False)
                client._connected(True)
                await asyncio.sleep(0.05)

        with pytest.raises(PeerLost, match="has been silent for"):
            await asyncio.wait_for(asyncio.gather(request, reconnect()), 20.0)
    finally:
        greeting.cancel()
        router.close()


async def test_waits_go_on_after_a_reason_that_is_too_long_for_the_wire(bench: Bench, ipc: str) -> None:
    desk, heard = Desk(), list[str | None]()
    desk.park = True
    bench.server(ipc, desk)
    client = bench.client(ipc, waiting=heard.append)
    request = asyncio.create_task(client.request(ask()))
    await until(lambda: desk.parked, "a request parked")
    desk.parked[0].reason = "x" * 100_000
    await until(lambda: "xxx" in str(heard[-1]), "a Wait that was cut")
    desk.parked[0].reason = "nearly done"
    await until(lambda: "nearly done" in str(heard[-1]), "the next Wait")
    desk.parked[0].reply(Ok())
    assert await request == Ok()


async def test_a_hello_that_cannot_be_sent_fails_at_once(bench: Bench, ipc: str) -> None:
    with pytest.raises(ProtocolError, match="Hello is beyond a limit"):
        bench.client(ipc, hello=Hello(PROTOCOL, "env", "env-0", 7, {"nvec": [2] * 5000}))
