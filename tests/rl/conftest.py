"""Recorded unrolls for the learners: a policy acts on random observations, and episodes end at random."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from common.rl.actor import Actor, Seen
from common.rl.noise import uniforms
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec, prefixed

Record = Callable[..., Arrays]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def cartpole() -> EnvSpec:
    return EnvSpec("CartPole-v1", (ArraySpec("obs", "<f4", (4,)),), ActionSpec("discrete", "<i8", (), (2,)))


def _observe(spec: EnvSpec, rows: int, draw: np.random.Generator) -> Arrays:
    observation: Arrays = {}
    for entry in spec.observations:
        shape, dtype = (rows, *entry.shape), np.dtype(entry.dtype)
        if dtype.kind == "f":
            observation[entry.name] = draw.normal(size=shape).astype(dtype)
        else:
            observation[entry.name] = draw.integers(0, 2 if dtype.kind == "b" else 200, shape).astype(dtype)
    return observation


def _record(policy: Actor, spec: EnvSpec, steps: int = 8, columns: int = 4, seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    rows: list[Arrays] = []
    first = np.ones(columns, bool)
    reward = reward_before = draw.normal(size=columns).astype(np.float32)
    state = {s.name: np.zeros((columns, *s.shape), s.dtype) for s in policy.spec.state}
    start = prefixed("state", state)
    for t in range(steps + 1):
        observation = _observe(spec, columns, draw)
        u = torch.from_numpy(uniforms(seed, (0, columns), t, policy.noise_size))
        seen = {name: torch.from_numpy(x) for name, x in observation.items()}
        with torch.inference_mode():
            ridden = {name: torch.from_numpy(x) for name, x in state.items()}
            begins, gained = torch.from_numpy(first), torch.from_numpy(reward)
            acted = policy.act(Seen(seen, begins, gained, ridden, u, torch.arange(columns)))
        state = {name: x.numpy() for name, x in acted.state.items()}
        reward = draw.normal(size=columns).astype(np.float32)
        terminated, truncated = draw.random((2, columns)) < 0.1
        rows.append(
            {
                **prefixed("observation", observation),
                "first": first,
                "action": acted.action.numpy(),
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated & ~terminated,
                **prefixed("extras", {name: x.numpy() for name, x in acted.extras.items()}),
            }
        )
        first = terminated | truncated
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    ahead = ("observation.", "first")
    arrays = {name: x if name.startswith(ahead) else x[:-1] for name, x in arrays.items()}
    final_index = np.flatnonzero(arrays["truncated"]).astype(np.int32)
    final = prefixed("final", _observe(spec, final_index.size, draw))
    return {**arrays, **start, **final, "final_index": final_index, "reward_before": reward_before}


@pytest.fixture
def record() -> Record:
    """Gives record(policy, spec, steps, columns, seed) -> the arrays of one unroll, SAME_STEP resets."""
    return _record
