"""The inference-server: batches Act requests, runs the policy, and follows the learner's weights."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

from common.errors import Finished, ProtocolError
from common.messages import Act, Actions, Error, GetWeights, Hello, NotModified, Weights
from common.metrics import InferenceMetrics
from common.service import Context, connect, until_stopped
from common.transport.client import Client
from common.transport.server import Server, Ticket, failure
from common.types import EnvSpec, version_updates
from services.inference_server.batcher import Batcher
from services.inference_server.held_back import HeldBack
from services.inference_server.runner import Runner

log = logging.getLogger("headrace.inference")

# A pass longer than this runs on a thread, so that peers are answered meanwhile; a hop costs 30 to 60 µs.
SLOW_PASS_S = 2e-3


class InferenceServer:
    """Answers Acts with the newest weights it has; holds nothing that a restart would lose."""

    def __init__(self, context: Context, address: str) -> None:
        config = context.config
        self._context = context
        self._metrics = InferenceMetrics(context.registry)
        # At lag 0 a result may depend neither on who else asked nor on what was faster just then.
        measured, device = not config.synchronous, config.inference.device
        self._runner = Runner(config.algorithm, config.network, config.run.seed, device, measured)
        wait_s = config.inference.wait_us * 1e-6
        self._batcher: Batcher[Ticket] = Batcher(config.inference.max_batch, wait_s, alone=config.synchronous)
        self._early: list[Ticket] = []
        # The first pass may compile or measure: it goes to the thread.
        self._pass_s = SLOW_PASS_S
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._busy = asyncio.Lock()
        self._wanted = asyncio.Event()
        self.server = Server(address, self._handle, net=config.net, metrics=context.metrics)

    async def follow(self, learner: Client) -> None:
        """Takes on each new version of the weights, for ever."""
        held_back = HeldBack(self._context.config.inference.hold_back)
        while True:
            reply: Weights | NotModified = await learner.request(GetWeights(held_back.newest))
            if isinstance(reply, Weights):
                weights = held_back.take(reply)
                async with self._busy:
                    self._runner.load(weights)
                self._metrics.weights_updates.set(version_updates(weights.version))
                self._admit()

    async def infer_forever(self) -> None:
        """Runs a forward pass whenever a batch is due."""
        loop = asyncio.get_running_loop()
        while True:
            due = self._batcher.due_in(time.monotonic())
            if due != 0.0:
                self._wanted.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), due)
                continue
            async with self._busy:
                tickets = self._batcher.take()
                acts = [ticket.message for ticket in tickets if isinstance(ticket.message, Act)]
                started = time.perf_counter()
                if self._pass_s < SLOW_PASS_S:
                    replies = self._act(acts)
                else:
                    replies = await loop.run_in_executor(self._pool, self._act, acts)
                self._measure(time.perf_counter() - started, acts)
            for ticket, reply in zip(tickets, replies, strict=True):
                ticket.reply(reply)

    def _act(self, acts: list[Act]) -> Sequence[Actions | Error]:
        """Runs one pass for all; where that fails one for each, so that only whose Act is at fault hears of it."""
        try:
            return self._runner.act(acts)
        except Exception as error:
            if len(acts) > 1:
                return [self._act([act])[0] for act in acts]
            log.exception("an Act failed")
            return [failure(error, "see the log of the inference-server")]

    def close(self) -> None:
        self.server.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _handle(self, ticket: Ticket) -> None:
        match ticket.message:
            case Hello() as hello:
                self._greet(ticket, hello)
            case Act() as act:
                self._queue(ticket, act)
            case other:
                raise ProtocolError(f"an inference-server answers no {type(other).__name__}", "see docs/protocol.md")

    def _greet(self, ticket: Ticket, hello: Hello) -> None:
        if self._runner.spec is None:
            ticket.reason = "no weights yet: the learner has sent none"
            self._early.append(ticket)
            return
        theirs = None if hello.spec is None else EnvSpec.from_wire(hello.spec)
        if theirs != self._runner.env:
            message = f"{hello.name} runs {theirs}, the policy is for {self._runner.env}"
            raise ProtocolError(message, "run one environment")
        ticket.welcome(self._runner.spec.to_wire())

    def _queue(self, ticket: Ticket, act: Act) -> None:
        if self._runner.spec is None:
            raise ProtocolError("Act before Hello was answered", "wait for Welcome")
        self._runner.check(act)
        if act.min_version > self._runner.version:
            ticket.reason = f"waits for newer weights than {version_updates(self._runner.version)}"
            self._early.append(ticket)
            return
        self._batcher.add(ticket, act.count, time.monotonic())
        self._metrics.queue_depth.set(len(self._batcher))
        self._wanted.set()

    def _admit(self) -> None:
        """Takes up again what came before its weights: greetings before the first ones, Acts before newer ones."""
        self._context.health.ready = True
        early, self._early = self._early, []
        for ticket in early:
            try:
                self._handle(ticket)
            except ProtocolError as error:
                # Here the loop that follows the learner would fail, not the one that asks.
                ticket.fail(error)

    def _measure(self, seconds: float, acts: list[Act]) -> None:
        self._pass_s += 0.1 * (seconds - self._pass_s)
        self._metrics.forward_seconds.observe(seconds)
        self._metrics.batch_size.observe(sum(act.count for act in acts))
        self._metrics.queue_depth.set(len(self._batcher))


async def run(context: Context) -> None:
    """Serves until the learner says that the job is done, or the service is told to stop."""
    config = context.config
    torch.set_num_threads(config.inference.threads)
    inference = InferenceServer(context, config.net.act[context.index % len(config.net.act)])
    learner = connect(context, config.net.weights, "learner", max_in_flight=1)
    try:
        await until_stopped(context, [inference.follow(learner), inference.infer_forever()])
    except Finished as finished:
        inference.server.finish(finished.message)
        await inference.server.drained(config.net.linger_s)
        raise
    finally:
        learner.close()
        inference.close()
