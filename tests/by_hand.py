"""Networks whose outputs are known without arithmetic, for updates that are computed by hand.

The observation is one number that nothing looks at. Critics have one hidden unit, which gives Q = slope · a + constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.rl.algorithms.base import OptimizerConfig
from common.rl.registry import algorithm_class
from common.rl.replayed import Transitions
from common.types import ActionSpec, ArraySpec, EnvSpec

NETWORK = {"hidden": [1], "activation": "relu"}
BOX = ActionSpec("box", "<f4", (1,), low=(-1.0,), high=(1.0,))
WIDE = ActionSpec("box", "<f4", (1,), low=(0.0,), high=(4.0,))
TWO = ActionSpec("discrete", "<i8", (), (2,))


def env(action: ActionSpec) -> EnvSpec:
    return EnvSpec("by hand", (ArraySpec("obs", "<f4", (1,)),), action)


def critics(constants: Sequence[Sequence[float]], slope: float | None = 0.0) -> Tensor:
    """Gives the flat parameters of critics with these outputs, [E][K]; `slope` None: they do not take an action."""
    bias = torch.tensor(constants)
    members, width = bias.shape
    inputs = [0.0] if slope is None else [0.0, 1.0]
    slope = slope or 0.0
    weights = torch.tensor(inputs * members)
    return torch.cat(
        [weights, torch.full((members,), 2.0), torch.full((members * width,), slope), (bias - 2.0 * slope).flatten()]
    )


@torch.no_grad()
def say(actor: nn.Module, outputs: Sequence[float]) -> Tensor:
    """Makes the actor's network give `outputs` whatever it sees; gives its flat parameters."""
    parameters = [p for p in actor.parameters() if p.requires_grad]
    for p in parameters:
        p.zero_()
    parameters[-1].copy_(torch.tensor(outputs).view_as(parameters[-1]))
    return torch.cat([p.flatten() for p in parameters])


def build(
    name: str,
    action: ActionSpec,
    outputs: Sequence[float],
    online: Tensor,
    target: Tensor,
    target_outputs: Sequence[float] | None = None,
    **algorithm: Any,
) -> tuple[Any, Any]:
    """Gives an actor that says `outputs`, and its algorithm with critics `online` and `target`; lr is 0.01."""
    kind = algorithm_class(name)
    actor = kind.make_actor(algorithm, NETWORK, env(action), 0)
    learner = kind(algorithm, OptimizerConfig(lr=0.01), actor, 0)
    state = {**learner.state_dict(), "critics": online, "target": target}
    if target_outputs is not None:
        state["actor_target"] = say(actor, target_outputs)
    say(actor, outputs)
    learner.load_state_dict(state)
    return actor, learner


def transitions(
    action: Sequence[float] | Sequence[int],
    reward: Sequence[float],
    discount: Sequence[float],
    relative: Sequence[float] | None = None,
) -> Transitions:
    """Gives transitions with a Box action of one component, or a discrete one where `action` are integers."""
    n = len(reward)
    taken = torch.tensor(action)
    return Transitions(
        observation={"obs": torch.zeros(n, 1)},
        next_observation={"obs": torch.zeros(n, 1)},
        action=taken if taken.dtype == torch.int64 else taken.view(n, 1),
        reward=torch.tensor(reward),
        discount=torch.tensor(discount),
        extras={},
        relative=torch.ones(n) if relative is None else torch.tensor(relative),
    )


def sparse(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
    """Gives -1 until the goal is within a half."""
    rewards: np.ndarray = -(np.abs(achieved - desired).max(-1) > 0.5).astype(np.float64)
    return rewards


def final(achieved: np.ndarray, desired: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives 1 for the goal, where the episode ends."""
    reached = sparse(achieved, desired) == 0.0
    return reached.astype(np.float32), reached


def one_number(achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
    return np.zeros(1, np.float32)
