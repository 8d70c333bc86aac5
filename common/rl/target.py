"""A target network: a copy of a network that learning follows at a distance; knows no loss and no schedule."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from common.rl.algorithms.base import flatten

Network = TypeVar("Network", bound=nn.Module)


class Target(Generic[Network]):
    """Begins as `network` is; `flat` are its parameters that learn, in the order of the network's own."""

    def __init__(self, network: Network) -> None:
        self.network = copy.deepcopy(network)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.network.requires_grad_(False)
        self.flat = flatten(trained)

    @torch.no_grad()
    def follow(self, online: Tensor, share: float) -> None:
        """Moves by `share` of the way to the flat parameters `online`: 1 copies them (Lillicrap et al. 2016)."""
        if share == 1.0:
            self.flat.copy_(online)
        else:
            self.flat.lerp_(online, share)
