"""What the value-based family shares: its settings, the network with its target, and an update as one transaction.

Knows no loss: an algorithm's own file says it, and calls this.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from common.rl.algorithms.base import FlatOptimizer, OptimizerConfig, numbers_of
from common.rl.exploration import EpsilonConfig, acting_scalars
from common.rl.q_networks import QNetwork
from common.rl.target import Target


class QConfig(BaseModel):
    """The part of the `algorithm` section that every value-based algorithm has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    huber: float = Field(1.0, gt=0, description="errors beyond ± this count linearly, those within it squared")
    target_every: int = Field(8000, ge=1, description="updates between those of the target network")
    tau: float = Field(1.0, gt=0, le=1, description="how far the target network then moves: 1: it is a copy")
    hidden: int = Field(0, ge=0, description="width of a layer of its own before each output; 0: none")
    actor_priorities: bool = Field(False, description="actors send what a table needs for an item's first priority")
    epsilon: EpsilonConfig = Field(
        EpsilonConfig(), description="random actions: start, end, steps or share; or base, alpha and actors (Ape-X)"
    )


class QLearner:
    """A network, its target and its optimiser: the state of one algorithm."""

    def __init__(self, config: QConfig, optimizer: OptimizerConfig, network: QNetwork) -> None:
        self._config = config
        self.network = network
        self.optimizer = FlatOptimizer(optimizer, network)
        self.target = Target(network)
        # Both look at observations through the same statistics.
        self.target.network.inputs = network.inputs

    def update(self, loss: Tensor, scalars: dict[str, Tensor], progress: float) -> dict[str, float]:
        """Descends one step, moves the target where that is due, and gives `scalars` and more as numbers.

        If one of them is not finite, NonFiniteUpdate is raised, and nothing has changed.
        """
        lr = self.optimizer.rate(progress)
        gradient, norm = self.optimizer.gradient(loss)
        metrics = numbers_of({"loss": loss, "grad_norm": norm, **scalars})
        self.optimizer.descend(gradient, norm, lr)
        if self.optimizer.steps % self._config.target_every == 0:
            self.target.follow(self.optimizer.flat, self._config.tau)
        return {**metrics, "lr": lr}

    def acting(self, steps: int, progress: float) -> dict[str, float]:
        """Gives the scalars of exploration."""
        return acting_scalars(self._config.epsilon, steps, progress, self.optimizer.steps)

    def state_dict(self) -> dict[str, Any]:
        """Gives the optimiser and the target network's parameters."""
        return {"optimizer": self.optimizer.state_dict(), "target": self.target.flat.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of the same settings."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.target.flat.copy_(state["target"])
