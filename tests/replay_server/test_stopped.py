"""What a replay-server that was stopped takes its env-servers for when it goes on."""

from __future__ import annotations

import asyncio
import signal
import time

import numpy as np
from jobs import PATIENCE_S, Service, short_dir, until, write_config
from streams import World

from common.config import load
from common.messages import Batch, Insert, Inserted, Sample
from common.service import connect, make_context
from common.types import ActionSpec, ArraySpec, EnvSpec

SPEC = EnvSpec("test", (ArraySpec("obs", "<f8", (1,)),), ActionSpec("discrete", "<i8", (), (2,)))


async def test_the_time_in_which_a_replay_server_was_stopped_makes_no_group_late() -> None:
    with short_dir() as directory:
        tree = {
            "env": {"envs": 2, "groups": 2},
            "rollout": {"unroll": 4},
            "replay": {"group_deadline_s": 6.0},
            "net": {"experience": [f"ipc://{directory}/r"], "resend_s": 60.0},
        }
        config = load(write_config(directory / "job.yaml", tree), (), {})
        service = Service("replay", directory / "job.yaml", directory)
        contexts = [make_context(config, role) for role in ("env", "learner")]
        hello = contexts[0].hello(SPEC.to_wire(), (("env-0/0", 1), ("env-0/1", 2)))
        env = connect(contexts[0], config.net.experience[0], "replay", max_in_flight=2, hello=hello)
        learner = connect(contexts[1], config.net.experience[0], "replay", max_in_flight=2)
        world = World(4, 1, seed=0)

        def insert(group: int) -> asyncio.Task[Inserted]:
            world.begin(f"env-0/{group}", 2)
            arrays = world.unroll(f"env-0/{group}").arrays | {
                "valid": np.ones((4, 2), np.bool_),
                "episode_returns": np.zeros(0, np.float32),
                "episode_lengths": np.zeros(0, np.int32),
            }
            tables = ("experience",)
            return asyncio.create_task(
                env.request(Insert(tables, f"env-0/{group}", group + 1, 1, 2 * group, 8, 8, arrays))
            )

        try:
            await env.welcome()
            first = insert(0)
            sample = asyncio.create_task(learner.request(Sample("experience", 0, 0)))
            waiting = "waits for unrolls of env-0/1"
            await until(lambda: waiting in str(contexts[1].health.report()["waiting_for"]), "the second group")
            service.process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            await until(lambda: time.monotonic() > stopped + 7.0, "longer than a group may take")
            second = insert(1)
            await asyncio.sleep(0)
            service.process.send_signal(signal.SIGCONT)
            batch = await asyncio.wait_for(sample, PATIENCE_S)
            assert isinstance(batch, Batch)
            assert (batch.unrolls, batch.missing) == (2, ())
            for task in (first, second):
                task.cancel()
        finally:
            for client in (env, learner):
                client.close()
            service.kill()
