"""How rewards are cut before anything is learned from them: pure functions of any shape."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Clip = Literal["none", "abs_one", "soft_asymmetric"]


def clipped(reward: Tensor, clip: Clip) -> Tensor:
    """Gives the rewards cut to ±1 (`abs_one`), or 5 tanh r above zero and 0.3 tanh r below it (`soft_asymmetric`).

    Both are Espeholt et al. 2018's, for Atari and for DMLab-30.
    """
    if clip == "abs_one":
        return reward.clamp(-1.0, 1.0)
    if clip == "soft_asymmetric":
        squashed = torch.tanh(reward)
        return torch.where(squashed < 0.0, 0.3 * squashed, 5.0 * squashed)
    return reward
