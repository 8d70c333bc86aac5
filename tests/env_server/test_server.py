"""What an env-server asks for first, and what another life of it asks for instead."""

from __future__ import annotations

import asyncio

import numpy as np
from jobs import PATIENCE_S, short_dir

from common.config import validate
from common.messages import Act, Hello
from common.service import make_context
from common.transport.server import Server, Ticket
from common.types import PolicySpec
from services.env_server.server import run


async def first_act(life_number: int) -> Act:
    """Runs an env-server in that life until it asks for its first actions."""
    asked: asyncio.Future[Act] = asyncio.get_running_loop().create_future()

    def handle(ticket: Ticket) -> None:
        if isinstance(ticket.message, Hello):
            ticket.welcome(PolicySpec().to_wire())
        elif isinstance(ticket.message, Act):
            asked.set_result(ticket.message)

    with short_dir() as directory:
        net = {"act": [f"ipc://{directory}/act"], "experience": [f"ipc://{directory}/experience"]}
        config = validate({"env": {"id": "CartPole-v1", "groups": 1, "envs": 2}, "net": net})
        context = make_context(config, "env", restarts=life_number)
        addresses = (*config.net.act, *config.net.experience)
        servers = [Server(address, handle, net=config.net, metrics=context.metrics) for address in addresses]
        running = asyncio.create_task(run(context))
        act = await asyncio.wait_for(asked, PATIENCE_S)
        context.stopping.set()
        await running
        for server in servers:
            server.close()
    return act


async def test_a_restarted_env_server_lives_through_other_episodes_and_other_noise() -> None:
    first, again, restarted = [await first_act(life_number) for life_number in (0, 0, 1)]
    np.testing.assert_array_equal(again.arrays["observation.obs"], first.arrays["observation.obs"])
    assert (restarted.arrays["observation.obs"] != first.arrays["observation.obs"]).all()
    # Noise is keyed by the step: these are far beyond what an earlier life can have reached.
    assert [act.step for act in (first, again, restarted)] == [0, 0, 1 << 40]
