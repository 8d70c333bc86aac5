"""Serves the newest weights to inference-servers, as soon as there are newer ones than the asker has."""

from __future__ import annotations

import asyncio

from common.errors import ProtocolError
from common.messages import GetWeights, Hello, NotModified, Weights
from common.service import Context
from common.transport.server import Server, Ticket

LONG_POLL_S = 20.0


class WeightsServer:
    """Answers GetWeights; holds the last message that `publish` was given."""

    def __init__(self, context: Context) -> None:
        self._parked: list[Ticket] = []
        self._weights: Weights | None = None
        self.server = Server(context.config.net.weights, self._handle, net=context.config.net, metrics=context.metrics)

    def publish(self, weights: Weights) -> None:
        """Makes these the newest weights, and answers who waits for them."""
        self._weights = weights
        parked, self._parked = self._parked, []
        for ticket in parked:
            ticket.reply(weights)

    def _handle(self, ticket: Ticket) -> None:
        match ticket.message:
            case Hello():
                ticket.welcome()
            case GetWeights(have=have):
                # What is newer than the newest is of another run, which this learner's takes the place of.
                if self._weights is not None and self._weights.version != have:
                    ticket.reply(self._weights)
                    return
                ticket.reason = "the learner has no newer weights"
                self._parked.append(ticket)
                asyncio.get_running_loop().call_later(LONG_POLL_S, self._end_poll, ticket, have)
            case other:
                raise ProtocolError(f"a learner-server answers no {type(other).__name__}", "see docs/protocol.md")

    def _end_poll(self, ticket: Ticket, have: int) -> None:
        if ticket in self._parked:
            self._parked.remove(ticket)
            ticket.reply(NotModified(have))
