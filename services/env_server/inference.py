"""The inference-servers that an env-server may ask: its own while that one lives, else the next that does.

Any of them can answer any Act, for none keeps state. Knows neither simulators nor unrolls.
"""

from __future__ import annotations

import asyncio
import logging
import time

from common.errors import PeerLost
from common.messages import Act, Actions, Hello
from common.service import Context, connect, first_welcome
from common.types import PolicySpec

log = logging.getLogger("headrace.env")

LOOK_S = 0.1


class InferenceServers:
    """Those of `net.act`, from this env-server's own on, so that env-servers spread over them evenly."""

    def __init__(self, context: Context, hello: Hello, max_in_flight: int) -> None:
        addresses = context.config.net.act
        own = context.index % len(addresses)
        self._clients = [
            connect(context, a, "inference", max_in_flight=max_in_flight, hello=hello, replaceable=len(addresses) > 1)
            for a in (*addresses[own:], *addresses[:own])
        ]
        self._asked = self._clients[0]
        self._give_up_s = context.config.net.give_up_s

    async def policy(self) -> PolicySpec:
        """Gives the policy's spec, from whoever answers first."""
        return PolicySpec.from_wire((await first_welcome(self._clients)).spec)

    async def request(self, act: Act) -> Actions:
        """Gives the answer of a live server; raises PeerLost when there was none for `net.give_up_s`."""
        while True:
            try:
                actions: Actions = await self._asked.request(act)
            except PeerLost:
                if len(self._clients) == 1:
                    raise
                await self._move()
            else:
                return actions
            finally:
                self._return_home()

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def _return_home(self) -> None:
        if self._asked is not self._clients[0] and self._clients[0].live:
            log.info("back to the %s", self._clients[0].peer)
            self._asked = self._clients[0]

    async def _move(self) -> None:
        until = time.monotonic() + self._give_up_s
        while not (live := [client for client in self._clients if client.live]):
            if time.monotonic() > until:
                raise PeerLost("no inference-server is there", "start one; see net.give_up_s")
            await asyncio.sleep(LOOK_S)
        if live[0] is not self._asked:
            log.warning("lost the %s; moves to the %s", self._asked.peer, live[0].peer)
            self._asked = live[0]
