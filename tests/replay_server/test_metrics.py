"""What /metrics, log and Waits say of a replay-server's rings: the limiter's state, stale priorities, what fits."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from typing import Any

import numpy as np
import pytest
from jobs import Service, short_dir, until, write_config
from streams import World

from common.config import load
from common.messages import Batch, Insert, Inserted, Ok, Sample, UpdatePriorities
from common.service import connect, make_context
from common.types import ActionSpec, ArraySpec, EnvSpec

SPEC = EnvSpec("test", (ArraySpec("obs", "<f8", (1,)),), ActionSpec("discrete", "<i8", (), (2,)))
TABLE: dict[str, Any] = {
    "kind": "prioritized",
    "capacity": 100_000,
    "max_bytes": 20_000,
    "min_size": 8,
    "samples_per_insert": 2.0,
    "error_buffer": 24.0,
}


def metrics(service: Service) -> dict[str, float]:
    """Gives every sample of table `experience`, by name and side."""
    text = urllib.request.urlopen(f"{service.url()}/metrics", timeout=5).read().decode()
    found = re.findall(
        r'^(headrace_replay_\w+)\{(?:side="(\w+)",)?table="experience"(?:,side="(\w+)")?\} (\S+)$', text, re.M
    )
    return {name + (side or after): float(value) for name, side, after, value in found}


async def test_a_limiters_state_stale_priorities_and_the_steps_that_fit_are_seen_from_outside() -> None:
    with short_dir() as directory:
        tree = {
            "env": {"envs": 2, "groups": 1},
            "rollout": {"unroll": 4},
            "replay": {"tables": {"experience": TABLE}},
            "learner": {"batch": 8},
            "net": {"experience": [f"ipc://{directory}/r"], "resend_s": 0.3},
        }
        config = load(write_config(directory / "job.yaml", tree), (), {})
        service = Service("replay", directory / "job.yaml", directory)
        contexts = [make_context(config, role) for role in ("env", "learner")]
        hello = contexts[0].hello(SPEC.to_wire(), (("env-0/0", 1),))
        env = connect(contexts[0], config.net.experience[0], "replay", max_in_flight=2, hello=hello)
        learner = connect(contexts[1], config.net.experience[0], "replay", max_in_flight=2)
        world = World(4, 1, seed=0)
        world.begin("env-0/0", 2)

        async def insert(number: int) -> None:
            unroll = world.unroll("env-0/0")
            arrays = unroll.arrays | {
                "valid": np.ones((4, 2), np.bool_),
                "episode_returns": np.zeros(0, np.float32),
                "episode_lengths": np.zeros(0, np.int32),
            }
            steps = 8 * number
            sent = Insert(("experience",), "env-0/0", 1, number, 0, steps, steps, arrays)
            assert await env.request(sent) == Inserted(0)

        async def seen(name: str, value: float) -> dict[str, float]:
            def there() -> dict[str, float] | None:
                now = metrics(service)
                return now if now.get(f"headrace_replay_{name}") == value else None

            return dict(await until(there, f"{name} of {value}"))

        try:
            await insert(1)
            # Of 8 steps min_size takes all 8. Each 8 after them put draws 16 items behind, and 24 is the end.
            await seen("limiter_ahead_items", 0.0)
            await insert(2)
            await seen("limiter_ahead_items", -16.0)
            third = asyncio.create_task(insert(3))
            now = await seen("queue_depth", 1.0)
            assert now["headrace_replay_limiter_blocked_seconds_totalsample"] == 0.0
            await until(
                lambda: "draws may fall behind" in str(contexts[0].health.report()["waiting_for"]), "the reason"
            )
            batch = await learner.request(Sample("experience", 8, 0))
            assert isinstance(batch, Batch)
            await third
            now = await seen("limiter_ahead_items", -24.0)
            assert now["headrace_replay_limiter_blocked_seconds_totalinsert"] > 0.0
            assert (now["headrace_replay_inserts_total"], now["headrace_replay_samples_total"]) == (24.0, 8.0)
            assert now["headrace_replay_sample_insert_ratio"] == pytest.approx(1 / 3)
            # Of eight keys, three name what is not there; then all come from an earlier life.
            keys = batch.arrays["keys"].copy()
            keys[:3] += 1 << 40
            priorities = {"keys": keys, "priorities": np.ones(8, np.float32)}
            for life, stale in ((learner.server_life, 3.0), (7, 11.0)):
                assert await learner.request(UpdatePriorities("experience", life, priorities)) == Ok()
                await seen("stale_priorities_total", stale)
            (kept,) = re.findall(r"table experience keeps (\d+) steps: that many fit into 20000 bytes", service.text())
            assert 200 < int(kept) < 400
            assert metrics(service)["headrace_replay_table_bytes"] <= 20_000
        finally:
            for client in (env, learner):
                client.close()
            service.kill()
