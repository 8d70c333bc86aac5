"""A batch of transitions as tensors, drawn from a ring by the learner; knows no algorithm.

The table has summed the rewards and discounted them: a learner bootstraps with `discount` and no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.rl.batch import required, tensor
from common.types import Arrays, select


@dataclass(frozen=True, slots=True)
class Transitions:
    """n transitions of one or more steps, [n, ...] each.

    `reward` is the discounted sum over the k steps there were, `discount` what a value after them is worth: the k-th
    power of one step's, 0 where the episode terminated. `extras` are the first step's. `relative` is N · P(i), the
    draw's probability in units of a uniform one; 1 everywhere where draws are uniform. `relabelled` bool says where a
    goal was exchanged, None where the table exchanges none.
    """

    observation: dict[str, Tensor]
    next_observation: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    discount: Tensor
    extras: dict[str, Tensor]
    relative: Tensor
    relabelled: Tensor | None = None

    @property
    def steps(self) -> int:
        """The number of transitions."""
        return self.reward.shape[0]


def to_transitions(arrays: Arrays, device: torch.device) -> Transitions:
    """Makes Transitions of arrays [n, ...], without a copy where they are writable and the device is the CPU.

    A missing array is a ProtocolError that names it; only `extras.*` and `relabelled` may be absent.
    """

    def group(prefix: str) -> dict[str, Tensor]:
        return {name: tensor(array, device) for name, array in select(prefix, arrays).items()}

    def one(name: str) -> Tensor:
        return tensor(required(arrays, name), device)

    return Transitions(
        observation=group("observation"),
        next_observation=group("next_observation"),
        action=one("action"),
        reward=one("reward"),
        discount=one("discount"),
        extras=group("extras"),
        relative=one("relative"),
        relabelled=one("relabelled") if "relabelled" in arrays else None,
    )


def importance(relative: Tensor, exponent: float) -> Tensor:
    """Gives the weights (N · P)^-exponent of a prioritized draw [n], divided by the largest (Schaul et al. 2016)."""
    weight = relative.pow(-exponent)
    return weight / weight.max()
