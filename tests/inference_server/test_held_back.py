"""Acting that stays behind: which versions it takes, and that a real server answers with them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from acting import served
from jobs import PATIENCE_S, until

from common.errors import RemoteError
from common.messages import Act, Weights
from common.types import ActionSpec, ArraySpec, EnvSpec, make_version
from services.inference_server.held_back import HeldBack

SPEC = EnvSpec("Walk-v0", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i8", (), (2,)))
ACT = {"observation.obs": np.zeros((2, 4), np.float32), "first": np.zeros(2, bool), "reward": np.zeros(2, np.float32)}


def weights(updates: int, ordinal: int = 1) -> Weights:
    return Weights(make_version(ordinal, updates), {}, {}, "", {})


@pytest.mark.parametrize(
    ("behind", "came", "acted_with"),
    [
        (0, [0, 1, 2, 9], [0, 1, 2, 9]),
        (3, [0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 2, 3]),
        # Of versions that were skipped the next older one is taken, never one too new.
        (3, [0, 2, 4, 8, 9, 20, 23], [0, 0, 0, 4, 4, 9, 20]),
    ],
)
def test_acting_takes_the_newest_version_that_is_as_far_behind(
    behind: int, came: list[int], acted_with: list[int]
) -> None:
    held_back = HeldBack(behind)
    assert held_back.newest == -1
    for updates, expected in zip(came, acted_with, strict=True):
        assert held_back.take(weights(updates)).version == make_version(1, expected)
        assert held_back.newest == make_version(1, updates)


def test_another_life_of_the_learner_is_acted_with_at_once() -> None:
    held_back = HeldBack(3)
    for updates in range(40):
        held_back.take(weights(updates))
    # It goes on from an older checkpoint.
    taken = [held_back.take(weights(updates, ordinal=2)).version for updates in (30, 32, 33, 35)]
    assert taken == [make_version(2, updates) for updates in (30, 30, 30, 32)]


def test_weights_of_another_run_take_the_place_of_newer_ones() -> None:
    held_back = HeldBack(3)
    for updates in range(40):
        held_back.take(weights(updates))
    assert held_back.take(weights(2)).version == held_back.newest == make_version(1, 2)


def test_what_is_kept_is_bounded() -> None:
    held_back = HeldBack(3)
    for updates in range(40):
        held_back.take(weights(updates))
    assert len(held_back._kept) == 4


@pytest.mark.parametrize(("behind", "expected"), [(0, [0, 1, 2, 3, 4, 12]), (3, [0, 0, 0, 0, 1, 4])])
async def test_a_real_server_answers_with_versions_that_are_as_old_as_asked(behind: int, expected: list[int]) -> None:
    tree = {"network": {"hidden": [8]}, "learner": {"batch": 1}, "inference": {"hold_back": behind}}
    replay = {"max_policy_lag": 20, "tables": {"experience": {"kind": "fifo", "capacity": 4}}}
    async with served({**tree, "replay": replay}, SPEC) as peers:
        versions = []
        for step, updates in enumerate((0, 1, 2, 3, 4, 12)):
            peers.learner.publish(replace(peers.first, version=make_version(1, updates)))
            # It asks for the next version once it has taken this one.
            await until(lambda: peers.learner._parked, "a question for newer weights")
            reply = await asyncio.wait_for(peers.env.request(Act(0, 2, step, 0, ACT)), PATIENCE_S)
            versions.append(reply.version)
    assert versions == [make_version(1, updates) for updates in expected]


async def test_an_inference_server_takes_the_weights_of_a_learner_of_another_run() -> None:
    tree = {"network": {"name": "mlp", "hidden": [8]}}
    async with served(tree, SPEC) as there:
        for version in (make_version(1, 500), make_version(1, 0)):
            there.learner.publish(replace(there.first, version=version))

            async def acts_with(version: int) -> bool:
                return bool((await there.env.request(Act(0, 2, 0, 0, ACT))).version == version)

            while not await acts_with(version):
                await asyncio.sleep(0.01)


async def test_an_act_that_fails_costs_its_asker_an_error_and_no_one_else_anything() -> None:
    tree = {"network": {"name": "mlp", "hidden": [8], "last_action": True}}
    state = {"state.last_action": np.full(2, 99)}
    async with served(tree, SPEC) as there:
        there.learner.publish(there.first)
        known = dict.fromkeys(("state.last_action",), np.zeros(2, np.int64))
        with pytest.raises(RemoteError, match="see the log of the inference-server") as caught:
            await there.env.request(Act(0, 2, 0, 0, ACT | state))
        assert caught.value.code == "internal"
        assert (await there.env.request(Act(0, 2, 1, 0, ACT | known))).version == there.first.version
