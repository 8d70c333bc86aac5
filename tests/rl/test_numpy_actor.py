"""The numpy form of a policy chooses what the policy chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from common.rl.actor import Seen
from common.rl.noise import uniforms
from common.rl.numpy_actor import numpy_actor
from common.rl.policy import build_policy
from common.types import ActionSpec, ArraySpec, EnvSpec

CHOICE = ActionSpec("discrete", "<i8", (), (5,))
BOX = ActionSpec("box", "<f4", (2, 3), (), (-1.0,) * 6, (1.0,) * 6)
ROWS = 300


def spec(action: ActionSpec) -> EnvSpec:
    return EnvSpec("x", (ArraySpec("a", "<f4", (4,)), ArraySpec("b", "|u1", (2, 3))), action)


@pytest.mark.parametrize("action", [CHOICE, BOX], ids=["choice", "box"])
@pytest.mark.parametrize(
    "network",
    [{"hidden": (16, 16)}, {"hidden": (64,), "activation": "relu"}, {"hidden": (8,), "normalize_observations": True}],
)
def test_actions_and_log_probabilities_are_the_policys(action: ActionSpec, network: dict[str, Any]) -> None:
    policy = build_policy({"name": "mlp", **network}, spec(action), 3)
    with torch.no_grad():
        policy.pi.weight.mul_(100.0)
        if policy.inputs.normalizer is not None:
            policy.inputs.normalizer.fold(torch.randn(50, 10) * 3.0 + 1.0)
            policy.inputs.normalizer.refresh()
    rng = np.random.default_rng(0)
    seen = {"a": rng.standard_normal((ROWS, 4)).astype(np.float32), "b": rng.integers(0, 255, (ROWS, 2, 3), np.uint8)}
    u = uniforms(1, (0, ROWS), 5, policy.noise_size)
    fast = numpy_actor(policy)
    assert fast is not None
    arrays = fast.act(seen, u)
    zeros = torch.zeros(ROWS)
    tensors = {name: torch.from_numpy(x) for name, x in seen.items()}
    with torch.inference_mode():
        acted = policy.act(Seen(tensors, zeros > 0, zeros, {}, torch.from_numpy(u), zeros.long()))
    assert arrays["action"].dtype == action.dtype
    assert arrays["action"].shape == (ROWS, *action.shape)
    np.testing.assert_allclose(arrays["action"], acted.action.numpy(), atol=1e-5)
    np.testing.assert_allclose(arrays["extras.log_prob"], acted.extras["log_prob"].numpy(), atol=2e-5)
    assert arrays.keys() == {"action", "extras.log_prob"}


def test_new_weights_are_followed_in_place_and_what_was_given_is_not_written_again() -> None:
    policy = build_policy({"name": "mlp", "hidden": (8,)}, spec(CHOICE), 3)
    fast = numpy_actor(policy)
    assert fast is not None
    seen = {"a": np.ones((ROWS, 4), np.float32), "b": np.zeros((ROWS, 2, 3), np.uint8)}
    u = uniforms(1, (0, ROWS), 5, 1)
    before = fast.act(seen, u)
    kept = before["action"].copy()
    with torch.no_grad():
        policy.pi.weight.mul_(1000.0)
    assert fast.act(seen, u)["action"].tolist() != kept.tolist()
    assert before["action"].tolist() == kept.tolist()


@pytest.mark.parametrize("network", [{"lstm": 8}, {"name": "minatar_cnn"}, {"last_reward": True}, {"sigma": "state"}])
def test_other_policies_act_by_themselves(network: dict[str, Any]) -> None:
    env = EnvSpec("x", (ArraySpec("obs", "|b1", (10, 10, 4)),), BOX)
    assert numpy_actor(build_policy({"name": "mlp", "hidden": (8,), **network}, env, 3)) is None
