"""Exploration where actions are few: how often an environment acts at random, and the choice itself.

Draws nothing: the noise comes with the step, keyed by environment and step. Knows no network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

# A coin, and the action that it may call for.
COLUMNS = 2


class EpsilonConfig(BaseModel):
    """`algorithm.epsilon`: the share of actions that are random.

    It falls linearly over `steps`, or over a share of the job; with `actors` each environment keeps one of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: float = Field(1.0, ge=0, le=1, description="at the first step")
    end: float = Field(0.01, ge=0, le=1, description="once it has fallen")
    steps: int = Field(0, ge=0, description="environment steps until then; 0: `share` of the job's budget")
    share: float = Field(0.1, gt=0, le=1, description="part of the job's budget (stop.steps, frames or seconds)")
    actors: int = Field(
        0, ge=0, description="N: environment i of N keeps base^(1 + alpha i / (N - 1)), at all times; 0: none of this"
    )
    base: float = Field(0.4, gt=0, lt=1, description="random share of the first environment")
    alpha: float = Field(7.0, ge=0, description="how far the last environment's is below it")

    @property
    def unread(self) -> Mapping[str, str]:
        """The keys that this exploration does not look at, and for what setting."""
        falling, own = ("start", "end", "steps", "share"), ("base", "alpha")
        unread = dict.fromkeys(falling if self.actors else own, f"actors={self.actors}")
        return {"share": f"steps={self.steps}", **unread} if self.steps else unread


def epsilon_at(config: EpsilonConfig, steps: int, progress: float) -> float:
    """Gives ε after `steps` of all environments, at `progress` (0..1) of the job."""
    done = steps / config.steps if config.steps else progress / config.share
    return config.start + min(1.0, done) * (config.end - config.start)


def epsilon_of(env: Tensor, config: EpsilonConfig) -> Tensor:
    """Gives each environment's own ε [B] by its number `env` [B] int64 (Horgan et al. 2018).

    Numbers beyond `actors` begin again, so that one more env-server has the same spread.
    """
    place = (env % config.actors) / max(1, config.actors - 1)
    return config.base ** (1.0 + config.alpha * place)


def explored(best: Tensor, choices: int, epsilon: Tensor | float, noise: Tensor) -> Tensor:
    """Gives `best` [B], or with probability ε any of the `choices` alike; `noise` [B, 2] are uniforms in (0, 1)."""
    at_random = (noise[:, 1] * choices).long()
    return torch.where(noise[:, 0] < epsilon, at_random, best)


def acting_epsilon(config: EpsilonConfig, env: Tensor, acting: Mapping[str, float]) -> Tensor | float:
    """Gives what to explore with under the scalars that came with the weights; before any came, all is random."""
    if acting.get("uniform", 1.0):
        return 1.0
    return epsilon_of(env, config) if config.actors else acting["epsilon"]


def acting_scalars(config: EpsilonConfig, steps: int, progress: float, updates: int) -> dict[str, float]:
    """Gives the scalars that `acting_epsilon` reads: until the first update all actions are uniform."""
    own = {} if config.actors else {"epsilon": epsilon_at(config, steps, progress)}
    return {"uniform": float(updates == 0), **own}
