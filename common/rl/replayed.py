"""A batch of transitions as tensors, drawn from a ring by the learner; knows no algorithm.

The table has summed the rewards and discounted them: a learner bootstraps with `discount` and no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.rl.batch import required
from common.rl.transfer import to_device
from common.types import Arrays, select

_REQUIRED = ("action", "reward", "discount", "relative")
_GROUPS = ("observation.", "next_observation.", "extras.")


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
    taken = {name: required(arrays, name) for name in _REQUIRED}
    taken |= {name: array for name, array in arrays.items() if name == "relabelled" or name.startswith(_GROUPS)}
    sent = to_device(taken, device)
    return Transitions(
        **{name: sent[name] for name in _REQUIRED},
        observation=select("observation", sent),
        next_observation=select("next_observation", sent),
        extras=select("extras", sent),
        relabelled=sent.get("relabelled"),
    )


def importance(relative: Tensor, start: float, progress: float) -> Tensor:
    """Gives the weights (N · P)^-β of a prioritized draw [n], divided by the largest (Schaul et al. 2016).

    β rises from `start` at `progress` 0 of the job to 1 at its end.
    """
    weight = relative.pow(-(start + (1.0 - start) * min(1.0, progress)))
    return weight / weight.max()
