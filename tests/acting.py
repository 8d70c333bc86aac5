"""A real inference-server between a learner's weights and a client in an env-server's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from jobs import short_dir

from common.config import validate
from common.messages import Weights
from common.service import connect, make_context
from common.transport.client import Client
from common.types import EnvSpec
from services.inference_server.server import InferenceServer
from services.learner_server.trainer import Trainer
from services.learner_server.weights import WeightsServer


@dataclass(frozen=True, slots=True)
class Served:
    """`first` are the learner's initial weights, to be published."""

    learner: WeightsServer
    env: Client
    first: Weights


@asynccontextmanager
async def served(tree: dict[str, Any], spec: EnvSpec) -> AsyncIterator[Served]:
    """Runs an inference-server of the config `tree` for as long as it is entered."""
    with short_dir() as directory, ExitStack() as stack:
        net = {"act": [f"ipc://{directory}/act"], "weights": f"ipc://{directory}/weights"}
        config = validate({**tree, "net": net})
        learner = WeightsServer(make_context(config, "learner"))
        stack.callback(learner.server.close)
        inference = InferenceServer(make_context(config, "inference"), config.net.act[0])
        stack.callback(inference.close)
        to_learner = connect(make_context(config, "inference"), config.net.weights, "learner", max_in_flight=1)
        stack.callback(to_learner.close)
        context = make_context(config, "env")
        hello = context.hello(spec.to_wire())
        env = connect(context, config.net.act[0], "inference", max_in_flight=1, hello=hello)
        stack.callback(env.close)
        tasks = [asyncio.create_task(work) for work in (inference.follow(to_learner), inference.infer_forever())]
        yield Served(learner, env, Trainer(config, spec, 1).weights(0, 0.0))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
