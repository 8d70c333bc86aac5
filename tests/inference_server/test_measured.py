"""An inference-server times its first pass in each of its forms and says so, but not where acting must repeat."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import numpy as np
import pytest
from acting import served
from jobs import PATIENCE_S

from common.config import validate
from common.messages import Act
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec
from services.inference_server.runner import Runner
from services.learner_server.trainer import Trainer

SPEC = EnvSpec("Look-v0", (ArraySpec("image", "|u1", (10, 10, 4)),), ActionSpec("discrete", "<i8", (), (3,)))
LAGGING = {"max_policy_lag": 4, "tables": {"experience": {"kind": "fifo", "capacity": 4}}}
IMAGES = re.compile(r"acts with (channels_last|contiguous) images: [\d.]+ ms for 6 rows, \w+ [\d.]+ ms")
DENSE = re.compile(r"acts with (numpy|torch): [\d.]+ ms for 6 rows, (numpy|torch) [\d.]+ ms")
FORMS = [({"name": "minatar_cnn"}, IMAGES), ({"name": "mlp", "hidden": [8]}, DENSE)]


def seen(rows: int) -> Arrays:
    images = np.random.default_rng(rows).integers(0, 255, (rows, 10, 10, 4), np.uint8)
    return {"observation.image": images, "first": np.zeros(rows, bool), "reward": np.zeros(rows, np.float32)}


def measured(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("acts with ")]


@pytest.mark.parametrize(("network", "said"), FORMS, ids=["images", "mlp"])
@pytest.mark.parametrize("lag", [0, 4])
async def test_a_real_server_measures_at_its_first_pass_unless_a_job_must_repeat_itself(
    lag: int, network: dict[str, Any], said: re.Pattern[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace.inference")
    lagging = {"replay": LAGGING, "learner": {"batch": 1}} if lag else {}
    async with served({"network": network, **lagging}, SPEC) as peers:
        peers.learner.publish(peers.first)
        for step, rows in enumerate((6, 3)):
            await asyncio.wait_for(peers.env.request(Act(0, rows, step, 0, seen(rows))), PATIENCE_S)
    assert [bool(said.match(message)) for message in measured(caplog)] == ([True] if lag else [])


@pytest.mark.parametrize("network", [network for network, _ in FORMS], ids=["images", "mlp"])
def test_what_was_measured_acts_as_before_and_once_for_each_network(
    network: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace.inference")
    weights = Trainer(validate({"network": network}), SPEC, 1).weights(0, 0.0)
    pair = [Runner({"name": "ppo"}, network, 3, "cpu", measures) for measures in (True, False)]
    for _ in range(2):
        for runner in pair:
            runner.load(weights)
        ours, theirs = ([reply.arrays for reply in runner.act([Act(0, 6, 0, 0, seen(6))])] for runner in pair)
        assert ours[0]["action"].tolist() == theirs[0]["action"].tolist()
        np.testing.assert_allclose(ours[0]["extras.log_prob"], theirs[0]["extras.log_prob"], atol=1e-5)
    assert len(measured(caplog)) == 1


def test_a_network_without_images_or_a_numpy_form_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.inference")
    network: dict[str, Any] = {"name": "mlp", "hidden": [8], "lstm": 4}
    runner = Runner({"name": "ppo"}, network, 3, "cpu", measured=True)
    runner.load(Trainer(validate({"network": network}), SPEC, 1).weights(0, 0.0))
    state = {name: np.zeros((6, 4), np.float32) for name in ("state.h", "state.c")}
    runner.act([Act(0, 6, 0, 0, seen(6) | state)])
    assert measured(caplog) == []
