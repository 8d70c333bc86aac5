"""The three real servers under messages that mean nothing: each is refused, changes no state, and serving goes on."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zmq
from jobs import short_dir, until
from proxies import send_all

from common.codec import Envelope, decode, encode
from common.config import Config, validate
from common.errors import RemoteError
from common.messages import (
    PROTOCOL,
    Act,
    Actions,
    Batch,
    Error,
    Finish,
    GetWeights,
    Hello,
    Insert,
    Inserted,
    Message,
    NotModified,
    Ok,
    Sample,
    UpdatePriorities,
    Wait,
    Weights,
    Welcome,
)
from common.service import Context, make_context
from common.transport.client import Client
from common.transport.server import Server
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec, new_life
from services.inference_server.server import InferenceServer
from services.learner_server.trainer import Trainer
from services.learner_server.weights import WeightsServer
from services.replay_server.server import ReplayServer

SPEC = EnvSpec("Walk-v0", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i8", (), (2,)))
OTHER = replace(SPEC, id="Run-v0")
LIFE = 1 << 50
MULTIPARTS = 100_000


def unroll(steps: int = 3, **changes: np.ndarray) -> Arrays:
    arrays = {
        "observation.obs": np.zeros((steps + 1, 2, 4), np.float32),
        "first": np.zeros((steps + 1, 2), bool),
        "action": np.zeros((steps, 2), np.int64),
        "reward": np.zeros((steps, 2), np.float32),
        "terminated": np.zeros((steps, 2), bool),
        "truncated": np.zeros((steps, 2), bool),
        "valid": np.ones((steps, 2), bool),
        "extras.log_prob": np.zeros((steps, 2), np.float32),
        "reward_before": np.zeros(2, np.float32),
        "versions": np.zeros(steps, np.int64),
        "episode_returns": np.ones(1, np.float32),
        "episode_lengths": np.ones(1, np.int32),
    }
    return arrays | changes


def insert(**changes: Any) -> Insert:
    good = Insert(("experience",), "env-0/0", LIFE, 1, 0, 6, 6, unroll())
    return replace(good, **changes)


def act(**changes: Any) -> Act:
    arrays = {"observation.obs": np.zeros((2, 4), np.float32), "first": np.zeros(2, bool)}
    arrays["reward"] = np.zeros(2, np.float32)
    return replace(Act(0, 2, 0, 0, arrays), **changes)


def hello(role: str = "env", name: str = "env-0", spec: EnvSpec | None = SPEC, life: int = LIFE) -> Hello:
    return Hello(PROTOCOL, role, name, life, spec.to_wire() if spec else None, ((f"{name}/0", life),))


class House:
    """One of each server in this process, on sockets in `directory`, and clients to ask them."""

    def __init__(self, directory: str, **tree: Any) -> None:
        self.net = {name: f"ipc://{directory}/{name}" for name in ("act", "experience", "weights")}
        addresses = {**self.net, "act": [self.net["act"]], "experience": [self.net["experience"]]}
        self.config: Config = validate({"net": addresses, "network": {"hidden": [8]}, **tree})
        self.contexts: dict[str, Context] = {}
        self.exit = AsyncExitStack()

    def context(self, role: str) -> Context:
        self.contexts[role] = make_context(self.config, role)
        return self.contexts[role]

    def replay(self) -> ReplayServer:
        replay = ReplayServer(self.context("replay"))
        self.exit.callback(replay.server.close)
        self.run(replay.poll_forever())
        return replay

    def learner(self) -> WeightsServer:
        weights = WeightsServer(self.context("learner"))
        self.exit.callback(weights.server.close)
        return weights

    def inference(self) -> InferenceServer:
        inference = InferenceServer(self.context("inference"), self.net["act"])
        self.exit.callback(inference.close)
        self.run(inference.follow(self.client("weights", Hello(PROTOCOL, "inference", "inference-0", new_life()))))
        self.run(inference.infer_forever())
        return inference

    def run(self, work: Any) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended

        self.exit.push_async_callback(end)

    def client(self, to: str, first_words: Hello) -> Client:
        context = make_context(self.config, "env")
        client = Client(self.net[to], to, first_words, net=self.config.net, metrics=context.metrics, max_in_flight=4)
        self.exit.callback(client.close)
        return client


@asynccontextmanager
async def house(**tree: Any) -> AsyncIterator[House]:
    with short_dir() as directory:
        made = House(str(directory), **tree)
        async with made.exit:
            yield made


async def refused(client: Client, message: Message) -> str:
    with pytest.raises(RemoteError) as caught:
        await asyncio.wait_for(client.request(message), 10)
    assert caught.value.code == "protocol", f"{message} got {caught.value}"
    return str(caught.value)


NOT_FOR_ANYBODY: list[Any] = [
    Welcome(PROTOCOL, 1),
    Actions(0),
    Inserted(1),
    Batch(1, 1, 1.0, 0),
    NotModified(1),
    Ok(),
    Wait("for nothing"),
    Error("protocol", "no"),
    UpdatePriorities("experience", 1, {"keys": np.zeros(1, np.int64)}),
]
TO_REPLAY = {
    "no table": insert(tables=()),
    "unknown table": insert(tables=("nothing",)),
    "one known table": insert(tables=("experience", "nothing")),
    "another's slot": insert(slot="env-1/0"),
    "another life": insert(life=LIFE + 1),
    "no arrays": insert(arrays={}),
    "no first": insert(arrays={name: array for name, array in unroll().items() if name != "first"}),
    "another dtype": insert(arrays=unroll(reward=np.zeros((3, 2)))),
    "another shape": insert(arrays=unroll(action=np.zeros((2, 2), np.int64))),
    "scalars": insert(arrays={name: np.zeros((), array.dtype) for name, array in unroll().items()}),
    "empty": insert(arrays={name: array[:0] for name, array in unroll().items()}),
    "unknown array": insert(arrays=unroll(zzz=np.zeros(3))),
    "step outside": insert(
        arrays=unroll(**{"final_index": np.array([6], np.int32), "final.obs": np.zeros((1, 4), np.float32)})
    ),
    "sample": Sample("experience", 1, 0),
    "finish": Finish("because I say so"),
    "act": act(),
    "weights": GetWeights(-1),
}


async def test_a_replay_server_refuses_nonsense_and_stays_as_it_was() -> None:
    async with house(replay={"max_policy_lag": 2}, learner={"batch": 1}) as made:
        replay = made.replay()
        env = made.client("experience", hello())
        await env.welcome()
        for name, message in [*TO_REPLAY.items(), *enumerate(NOT_FOR_ANYBODY)]:
            assert await refused(env, message), name
        for stranger in (hello(name="env-1", spec=OTHER, life=2), hello(name="env-2", spec=None, life=3)):
            with pytest.raises(RemoteError, match=r"env-1 runs .*env-0 runs|without a spec"):
                await made.client("experience", stranger).welcome()
        garbled = replace(hello(name="env-3", life=4), spec={"id": "x", "observations": [["obs", "O", [1]]]})
        with pytest.raises(RemoteError, match="is no EnvSpec"):
            await made.client("experience", garbled).welcome()
        learner = made.client("experience", hello("learner", "learner", None, 5))
        assert EnvSpec.from_wire((await learner.welcome()).spec) == SPEC
        for sample in (Sample("nothing", 1, 0), Sample("experience", 0, 0), Sample("experience", 65, 0)):
            await refused(learner, sample)
        assert replay._tables["experience"].size == 0
        assert await env.request(insert()) == Inserted(0)
        batch = await learner.request(Sample("experience", 1, 1))
        assert (batch.unrolls, batch.discarded) == (1, 0)
        assert batch.arrays["counters"].tolist() == [[LIFE, 1, 6, 6]]
        assert batch.arrays["episode_returns"].tolist() == [1.0]


TO_INFERENCE = {
    "nobody": act(count=0),
    "fewer than none": act(count=-1),
    "more than it brings": act(count=3),
    "an environment before the first": act(first_env=-1),
    "an environment beyond all": act(first_env=1 << 62),
    "no arrays": act(arrays={}),
    "other arrays": act(arrays={"observation.obs": np.zeros((2, 4), np.float64), "first": np.zeros(2, bool)}),
    "insert": insert(),
    "sample": Sample("experience", 1, 0),
    "finish": Finish("because I say so"),
    "weights": GetWeights(-1),
}


async def test_an_inference_server_refuses_nonsense_and_stays_as_it_was() -> None:
    async with house() as made:
        weights, inference = made.learner(), made.inference()
        # These come before there are weights to judge them by, and are answered when there are.
        garbled = replace(hello(name="env-9", life=9), spec={"id": ["deep"]})
        early = [made.client("act", hello(name="env-8", spec=OTHER, life=8)), made.client("act", garbled)]
        env = made.client("act", hello())
        await until(lambda: len(inference._early) == 3, "three greetings")
        weights.publish(Trainer(made.config, SPEC, 1).weights(0, 0.0))
        await asyncio.wait_for(env.welcome(), 10)
        for client in early:
            with pytest.raises(RemoteError, match=r"env-8 runs|is no EnvSpec"):
                await asyncio.wait_for(client.welcome(), 10)
        for name, message in [*TO_INFERENCE.items(), *enumerate(NOT_FOR_ANYBODY)]:
            assert await refused(env, message), name
        odd = act(step=-(1 << 63), first_env=(1 << 43) - 3)
        assert (await env.request(odd)).version == 1 << 40
        assert (await env.request(act())).arrays["action"].shape == (2,)


async def test_a_learner_server_refuses_nonsense_and_stays_as_it_was() -> None:
    async with house() as made:
        weights = made.learner()
        client = made.client("weights", hello("inference", "inference-0"))
        messages = [act(), insert(), Sample("experience", 1, 0), Finish("because I say so"), *NOT_FOR_ANYBODY]
        for message in messages:
            await refused(client, message)
        parked = asyncio.create_task(client.request(GetWeights(1 << 62)))
        trainer = Trainer(made.config, SPEC, 1)
        weights.publish(trainer.weights(0, 0.0))
        answer = await client.request(GetWeights(-(1 << 63)))
        assert (answer.version, answer.layout) == (trainer.version, trainer.layout)
        parked.cancel()


def garbage(seed: int, lives: list[int], server_life: int) -> Iterator[list[Any]]:
    """Gives random multiparts for ever: random bytes, damaged messages of every kind, and whole ones."""
    rng = random.Random(seed)
    kinds = [*NOT_FOR_ANYBODY, *TO_REPLAY.values(), *TO_INFERENCE.values(), insert(), act(), GetWeights(5)]
    kinds += [
        hello(name="env-x", life=77),
        hello("learner", "learner-x", None, 78),
        hello(name="env-y", spec=OTHER, life=79),
    ]
    packed = [[memoryview(frame).tobytes() for frame in encode(kind, Envelope(0, 0, 0, 0))] for kind in kinds]
    for n in itertools.count(1):
        if rng.random() < 0.2:
            yield [rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(1, 4))]
            continue
        which = rng.randrange(len(kinds))
        head = encode(kinds[which], Envelope(n, rng.choice(lives), server_life, n))[0]
        frames = [head, *packed[which][1:]]
        if rng.random() < 0.8:
            at = rng.randrange(len(frames))
            frame = bytearray(frames[at] or b"\0")
            frame[rng.randrange(len(frame))] ^= rng.randrange(1, 256)
            frames[at] = bytes(frame)
        yield frames


async def flood(address: str, server: Server, role: str) -> None:
    """Sends the garbage as fifty clients that said Hello."""
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.linger = 0
    raw.connect(address)
    lives = [new_life() for _ in range(50)]
    try:
        for i, life in enumerate(lives):
            raw.send_multipart(encode(hello(role, f"stranger-{i}", life=life), Envelope(0, life, 0, 0)))
            await until(lambda: raw.poll(0), "Welcome")
            assert isinstance(decode(raw.recv_multipart())[0], Welcome)
        await send_all(raw, itertools.islice(garbage(3, lives, server.life), MULTIPARTS))
        await send_all(raw, [encode(hello(role, "last", life=80), Envelope(0, 80, 0, 0))])
        await until(lambda: 80 in server._peers, "all is read")
    finally:
        raw.close()


async def test_a_replay_server_survives_100_000_random_multiparts() -> None:
    async with house(replay={"max_policy_lag": 2}, learner={"batch": 1}) as made:
        replay = made.replay()
        env = made.client("experience", hello())
        await env.welcome()
        await flood(made.net["experience"], replay.server, "env")
        learner = made.client("experience", hello("learner", "learner", None, new_life()))
        assert EnvSpec.from_wire((await learner.welcome()).spec) == SPEC
        assert await env.request(insert()) == Inserted(0)
        assert (await learner.request(Sample("experience", 1, 1))).unrolls == 1


async def test_an_inference_server_survives_100_000_random_multiparts() -> None:
    async with house() as made:
        weights, inference = made.learner(), made.inference()
        env = made.client("act", hello())
        weights.publish(Trainer(made.config, SPEC, 1).weights(0, 0.0))
        await env.welcome()
        await flood(made.net["act"], inference.server, "env")
        assert (await env.request(act())).arrays["action"].shape == (2,)


async def test_a_learner_server_survives_100_000_random_multiparts() -> None:
    async with house() as made:
        weights = made.learner()
        client = made.client("weights", hello("inference", "inference-0"))
        await client.welcome()
        await flood(made.net["weights"], weights.server, "inference")
        weights.publish(Trainer(made.config, SPEC, 1).weights(0, 0.0))
        assert isinstance(await client.request(GetWeights(-1)), Weights)
