"""The message plane beside bare pyzmq, two processes over ipc: a small request's round trip, and large payloads.

All processes keep the memory that they free, as every service does.

python -m benchmarks.wire [--repeat 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
import timeit
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
import zmq
import zmq.asyncio
from prometheus_client import CollectorRegistry

from benchmarks.page import show, spread, write_json
from common.allocator import keep_freed_memory
from common.codec import Envelope, decode, encode
from common.config import NetConfig
from common.messages import PROTOCOL, Act, Actions, Hello, Welcome
from common.metrics import ServiceMetrics
from common.transport.client import Client
from common.transport.server import Server, Ticket

SIZES = {1 << 10: 5_000, 256 << 10: 1_500, 2 << 20: 300}
PIPELINED = 4


async def _bare_server(address: str) -> None:
    socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
    socket.bind(address)
    while True:
        identity, request, payload = await socket.recv_multipart(copy=False)
        await socket.send_multipart([identity, request, payload], copy=False)


async def _our_server(address: str) -> None:
    def handle(ticket: Ticket) -> None:
        if isinstance(ticket.message, Hello):
            ticket.reply(Welcome(PROTOCOL, server.life))
        elif isinstance(ticket.message, Act):
            ticket.reply(Actions(0, ticket.message.arrays))

    server = Server(address, handle, net=NetConfig(), metrics=ServiceMetrics("x", CollectorRegistry()))
    await asyncio.Event().wait()


def _serve(server: Callable[[str], Awaitable[None]], address: str) -> None:
    keep_freed_memory()
    uvloop.run(server(address))  # type: ignore[arg-type]


async def _bare_client(address: str, size: int, n: int) -> tuple[float, float]:
    socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    socket.connect(address)
    payload = np.zeros(size, np.uint8)

    async def ask() -> None:
        await socket.send_multipart([b"x", payload], copy=False)
        await socket.recv_multipart(copy=False)

    return await _measure(ask, n)


async def _our_client(address: str, size: int, n: int) -> tuple[float, float]:
    hello = Hello(PROTOCOL, "env", "bench", 7)
    metrics = ServiceMetrics("x", CollectorRegistry())
    client = Client(address, "server", hello, net=NetConfig(), metrics=metrics, max_in_flight=PIPELINED)
    await client.welcome()
    act = Act(0, 1, 0, 0, {"observation.obs": np.zeros(size, np.uint8)})
    return await _measure(lambda: client.request(act), n)


async def _measure(ask: Callable[[], Awaitable[object]], n: int) -> tuple[float, float]:
    """Gives the median round trip in seconds, and requests per second with PIPELINED in flight."""
    trips = []
    for _ in range(n):
        began = time.perf_counter()
        await ask()
        trips.append(time.perf_counter() - began)

    async def some() -> None:
        for _ in range(n // PIPELINED):
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(PIPELINED)))
    return statistics.median(trips[n // 10 :]), n / (time.perf_counter() - began)


def run(ours: bool, size: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as folder:
        address = f"ipc://{folder}/wire"
        server = multiprocessing.Process(target=_serve, args=(_our_server if ours else _bare_server, address))
        server.start()
        try:
            return uvloop.run((_our_client if ours else _bare_client)(address, size, SIZES[size]))
        finally:
            server.kill()
            server.join()


def codec_us() -> list[float]:
    """Microseconds to encode and decode an Act of three arrays: means of a thousand times each."""
    arrays = {"observation.obs": np.zeros((64, 4), np.float32), "reward": np.zeros(64, np.float32)}
    act, envelope = Act(0, 64, 1, 0, {**arrays, "first": np.zeros(64, np.bool_)}), Envelope(1, 1 << 61, 1 << 61, 1)

    def there() -> None:
        decode([bytes(frame) if isinstance(frame, bytes) else frame.data for frame in encode(act, envelope)])

    return [seconds * 1e3 for seconds in timeit.repeat(there, number=1000, repeat=20)]


def measure(repeat: int) -> dict[str, Any]:
    """Measures in turn: for each size pairs of (bare, ours), each its round trip in s and its requests per second."""
    keep_freed_memory()
    pairs = {size: [(run(False, size), run(True, size)) for _ in range(repeat)] for size in SIZES}
    return {"pairs": pairs, "codec_us": [us for _ in range(repeat) for us in codec_us()]}


def report(found: dict[str, Any]) -> str:
    """Gives a Markdown table of what `measure` found."""
    lines = ["| payload | | bare zmq.asyncio | Headrace | ratio |", "|---|---|---|---|---|"]
    for size, pairs in found["pairs"].items():
        name = f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
        bare, ours = (statistics.median(pair[i][0] for pair in pairs) * 1e6 for i in (0, 1))
        lines.append(f"| {name} | round trip | {bare:.0f} µs | {ours:.0f} µs | {_ratio(pairs, 0)} |")
        bare, ours = (statistics.median(pair[i][1] for pair in pairs) * size * 2 / 1e9 for i in (0, 1))
        lines.append(
            f"| | there and back, {PIPELINED} in flight | {bare:.2f} GB/s | {ours:.2f} GB/s | {_ratio(pairs, 1)} |"
        )
    codec = found["codec_us"]
    times = f"{min(codec):.1f} µs at best, {statistics.median(codec):.1f} in the median"
    return "\n".join(lines) + f"\n\nEncoding and decoding an Act of three arrays: {times}."


def _ratio(pairs: list[tuple[tuple[float, float], tuple[float, float]]], which: int) -> str:
    return spread([ours[which] / bare[which] for bare, ours in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every repetition to this file")
    arguments = parser.parse_args()
    found = measure(arguments.repeat)
    show(report(found), ("payload", "", "bare", "ours", "ratio"))
    if arguments.json is not None:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
