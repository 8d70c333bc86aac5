"""Exploration in a Box: Gaussian and Ornstein-Uhlenbeck noise around the action, and uniform actions at first.

Draws nothing: the uniforms come with the step, keyed by environment and step. Works within ±1, half the range of each
component; knows no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from common.rl.actor import Seen
from common.rl.algorithms.base import scheduled
from common.types import ArraySpec

MEMORY = "noise"


class ActionNoiseConfig(BaseModel):
    """`algorithm.noise`: what is added to the actor's actions while it collects."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["gaussian", "ornstein_uhlenbeck"] = Field(
        "gaussian", description="gaussian: each step's own; ornstein_uhlenbeck: it drifts, from 0 in each episode"
    )
    scale: float = Field(0.1, ge=0, description="std of what each step adds, in halves of the action's range")
    theta: float = Field(0.15, gt=0, lt=2, description="ornstein_uhlenbeck: the share that each step forgets")
    schedule: Literal["constant", "linear"] = Field("constant", description="linear: falls to 0 at the end of the job")

    @property
    def unread(self) -> Mapping[str, str]:
        """The keys that this noise does not look at, and for what setting."""
        return {"theta": "kind=gaussian"} if self.kind == "gaussian" else {}


class DriftingNoiseConfig(ActionNoiseConfig):
    """`algorithm.noise` with the defaults of noise that drifts, whichever of its keys are set."""

    kind: Literal["gaussian", "ornstein_uhlenbeck"] = Field(
        "ornstein_uhlenbeck",
        description="gaussian: each step's own; ornstein_uhlenbeck: it drifts, from 0 in each episode",
    )
    scale: float = Field(0.2, ge=0, description="std of what each step adds, in halves of the action's range")


def memory_spec(config: ActionNoiseConfig, size: int) -> tuple[ArraySpec, ...]:
    """Gives what rides in the actor's state: the last noise, where the next depends on it."""
    return () if config.kind == "gaussian" else (ArraySpec(MEMORY, "<f4", (size,)),)


def noise_scalars(config: ActionNoiseConfig, progress: float, updates: int) -> dict[str, float]:
    """Gives the scalars that come with the weights: the noise's scale, and `uniform` until the first update."""
    return {"noise": scheduled(config.scale, config.schedule, progress), "uniform": float(updates == 0)}


def perturbed(y: Tensor, seen: Seen, config: ActionNoiseConfig, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Gives actions y [B, k] in ±1 with noise added and cut to ±1, and the memory that rides on.

    x' = (1 - theta) x + scale · N(0, 1), of which Gaussian noise keeps no x (Lillicrap et al. 2016); `seen.noise` has k
    uniforms.
    """
    added = torch.special.ndtri(seen.noise) * scale
    if config.kind == "gaussian":
        return (y + added).clamp(-1.0, 1.0), {}
    before = seen.state[MEMORY].masked_fill(seen.first.unsqueeze(-1), 0.0)
    added = added + (1.0 - config.theta) * before
    return (y + added).clamp(-1.0, 1.0), {MEMORY: added}


def uniform(noise: Tensor) -> Tensor:
    """Gives actions in ±1, all alike, of uniforms [B, k]."""
    return 2.0 * noise - 1.0
