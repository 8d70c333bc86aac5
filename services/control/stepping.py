"""Environments stepped here, outside the pipeline: the arrays that a step fills, and actions at random.

Knows backends' specs; knows no policy and no service.
"""

from __future__ import annotations

import numpy as np

from common.types import ActionSpec, EnvSpec
from services.env_server.rollout import Targets


def step_rows(spec: EnvSpec, n: int) -> Targets:
    """Gives the arrays for the steps of `n` environments, all zeros."""
    observation = {a.name: np.zeros((n, *a.shape), a.dtype) for a in spec.observations}
    return Targets(observation, np.zeros(n, np.float32), *(np.zeros(n, np.bool_) for _ in range(3)))


def random_actions(spec: ActionSpec, n: int, rng: np.random.Generator) -> np.ndarray:
    """Gives `n` actions [n, ...], uniform over the space; a component without a bound stays within 1 of 0 there."""
    if spec.parts:
        parts = [random_actions(part, n, rng).reshape(n, -1) for part in spec.parts]
        return np.concatenate(parts, axis=1, dtype=spec.dtype)
    if spec.kind == "box":
        low, high = (np.nan_to_num(np.array(bound), posinf=1.0, neginf=-1.0) for bound in (spec.low, spec.high))
        return rng.uniform(low, high, (n, spec.size)).astype(spec.dtype).reshape(n, *spec.shape)
    return rng.integers(0, np.array(spec.n), (n, len(spec.n))).astype(spec.dtype).reshape(n, *spec.shape)
