"""What SAC and TD3 share: settings of the critics, the ensemble with its target, and the noise of an update.

Knows no loss and no policy: an algorithm's own file says those, and calls this. All gradients of an update are taken
before the first step, as in the first SAC (Haarnoja et al. 2018a): an update that is not finite has then changed
nothing, and the metrics are the only wait for the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from common.rl.algorithms.base import FlatOptimizer, OptimizerConfig
from common.rl.critics import Body, Critic
from common.rl.goals import Goals
from common.rl.noise import key
from common.rl.target import Target

DEFAULT_OPTIMIZER = OptimizerConfig(name="adam", lr=3e-4, eps=1e-8, max_grad_norm=math.inf)
_LEAST = 1e-7


class CriticConfig(BaseModel):
    """The part of the `algorithm` section that every algorithm with an ensemble of critics has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    critics: int = Field(2, ge=1, description="critics in the ensemble")
    tau: float = Field(0.005, gt=0, le=1, description="how far targets move towards what they follow, each time")
    importance: float = Field(
        0.4, ge=0, le=1, description="β at the start, with a prioritized table; 1 at the end of the job's budget"
    )
    actor_priorities: bool = Field(False, description="actors send what a table needs for an item's first priority")
    reward: str = Field(
        "", description="with a table that exchanges goals: `package.module:function`(achieved, desired) gives rewards"
    )


class CriticLearner:
    """The critics, their target and their optimiser: the state that is not the actor's; `seed` is the noise's."""

    def __init__(self, config: CriticConfig, optimizer: OptimizerConfig, critic: Body, seed: int) -> None:
        self._config = config
        self.critic = critic
        self.optimizer = FlatOptimizer(optimizer, critic)
        self.target = Target(critic)
        self.goals = Goals(config.reward)
        self._seed = seed
        self._generator = torch.Generator(self.optimizer.flat.device)

    def lend(self, borrower: Critic | None) -> None:
        """Makes the parameters of an actor's critics, if it has any, the learner's own: they share memory."""
        if borrower is not None:
            for lent, own in zip(borrower.body.parameters(), self.critic.parameters(), strict=True):
                lent.data = own.data

    def uniforms(self, *shape: int) -> Tensor:
        """Gives uniforms in (0, 1), a function of the seed and the update alone; to be called once in an update."""
        # Mixed: of a seed the CPU's generator takes the lower 32 bits alone.
        self._generator.manual_seed(key(self._seed, self.optimizer.steps))
        drawn = torch.rand(shape, generator=self._generator, device=self._generator.device)
        return drawn.clamp_(_LEAST, 1.0 - _LEAST)

    def follow(self) -> None:
        """Moves the target towards the critics."""
        self.target.follow(self.optimizer.flat, self._config.tau)

    def state_dict(self) -> dict[str, Any]:
        """Gives the critics, their target and the optimiser."""
        flats = {"critics": self.optimizer.flat.clone(), "target": self.target.flat.clone()}
        return {**flats, "critics_optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of the same settings."""
        self.optimizer.flat.copy_(state["critics"])
        self.target.flat.copy_(state["target"])
        self.optimizer.load_state_dict(state["critics_optimizer"])
