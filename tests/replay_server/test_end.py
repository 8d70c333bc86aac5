"""What the learner is told when it ends the job: all streams' totals, whatever it has not read."""

from __future__ import annotations

import asyncio

import numpy as np
from jobs import short_dir

from common.config import validate
from common.messages import PROTOCOL, Finish, Hello, Insert, Sample
from common.service import make_context
from common.transport.client import Client
from common.types import ActionSpec, ArraySpec, EnvSpec
from services.replay_server.server import ReplayServer

SPEC = EnvSpec("Walk-v0", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i8", (), (2,)))
LIFE = 1 << 50
UNROLL = {
    "observation.obs": np.zeros((4, 2, 4), np.float32),
    "first": np.zeros((4, 2), bool),
    "action": np.zeros((3, 2), np.int64),
    "reward": np.zeros((3, 2), np.float32),
    "terminated": np.zeros((3, 2), bool),
    "truncated": np.zeros((3, 2), bool),
    "valid": np.ones((3, 2), bool),
    "extras.log_prob": np.zeros((3, 2), np.float32),
    "reward_before": np.zeros(2, np.float32),
    "versions": np.zeros(3, np.int64),
    "episode_returns": np.ones(1, np.float32),
    "episode_lengths": np.ones(1, np.int32),
}


async def test_the_end_tells_again_what_was_told_with_a_batch_that_may_not_have_been_read() -> None:
    with short_dir() as directory:
        net = {"experience": [f"ipc://{directory}/experience"]}
        config = validate({"net": net, "replay": {"max_policy_lag": 1}, "learner": {"batch": 1}})
        replay = ReplayServer(make_context(config, "replay"))

        def client(first: Hello) -> Client:
            metrics = make_context(config, "env").metrics
            address = config.net.experience[0]
            return Client(address, "replay", first, net=config.net, metrics=metrics, max_in_flight=4)

        env = client(Hello(PROTOCOL, "env", "env-0", LIFE, SPEC.to_wire(), (("env-0/0", LIFE),)))
        learner = client(Hello(PROTOCOL, "learner", "learner", LIFE + 1, None, ()))
        try:
            async with asyncio.timeout(20):
                await env.request(Insert(("experience",), "env-0/0", LIFE, 7, 0, 42, 84, UNROLL))
                batch = await learner.request(Sample("experience", 1, 0))
                finished = await learner.request(Finish("enough"))
        finally:
            env.close()
            learner.close()
            replay.server.close()
    assert batch.arrays["counters"].tolist() == [[LIFE, 7, 42, 84]]
    assert finished.arrays["counters"].tolist() == [[LIFE, 7, 42, 84]]
    assert batch.arrays["episode_returns"].tolist() == [1.0]
    assert finished.arrays["episode_returns"].tolist() == []
