"""Actions at random are actions of the space."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from services.control.stepping import random_actions
from services.env_server.backends.spaces import action_putter, action_rows, action_spec

SPACES = (
    spaces.Discrete(3, start=2),
    spaces.MultiDiscrete([2, 5]),
    spaces.MultiBinary(3),
    spaces.Box(np.float32([[-2.0], [5.0]]), np.float32([[-1.0], [6.0]])),
    spaces.Tuple((spaces.Discrete(4), spaces.Dict({"a": spaces.Box(2.0, 3.0, (2,), np.float32)}))),
)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_random_actions_are_of_the_space_and_differ(space: spaces.Space[object]) -> None:
    spec = action_spec("Test-v0", space)
    actions = random_actions(spec, 20, np.random.default_rng(0))
    assert actions.shape == (20, *spec.shape)
    assert actions.dtype == np.dtype(spec.dtype)
    assert all(space.contains(action) for action in action_rows(space, action_putter(space)(actions)))
    assert len(np.unique(actions, axis=0)) > 1
