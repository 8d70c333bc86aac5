"""Data parallelism as algorithms see it: sums, means and moments over all ranks of a learner.

A rank has every `size()`-th column of a batch: column b of rank r is column b * size() + r of the whole, so place
t * B + b of the whole is place (t * B + b) // size() of rank (t * B + b) % size(). All ranks call these functions in
the same order. On a learner of one rank each gives what it was given and costs a look at a variable.

Knows no process and no network address: `services/learner_server/replicas` forms the group.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_DISTRIBUTED = dist.is_available()


def size() -> int:
    """Gives the number of ranks; 1 where no group was formed."""
    return dist.get_world_size() if _DISTRIBUTED and dist.is_initialized() else 1


def total(x: Tensor) -> Tensor:
    """Sums `x`, which is contiguous, over all ranks, in place."""
    if size() > 1:
        dist.all_reduce(x)
    return x


def count(n: int) -> int:
    """Gives the sum of all ranks' `n`."""
    return n if size() == 1 else int(total(torch.tensor(n)))


def gathered(x: Tensor) -> Tensor:
    """Gives every rank's `x`, of one shape for all: [size, *shape]."""
    if size() == 1:
        return x.unsqueeze(0)
    each = x.new_empty((size(), *x.shape))
    dist.all_gather(list(each.unbind(0)), x.contiguous())
    return each


def own(places: Tensor) -> Tensor:
    """Gives this rank's of the places or columns of the whole batch, as its own numbers, in the order they came in."""
    if (n := size()) == 1:
        return places
    return places[places % n == dist.get_rank()].div(n, rounding_mode="floor")


def weight(x: Tensor, mask: Tensor | None) -> Tensor | float:
    """Gives what this rank's mean over the steps of `x` that count weighs in the mean over all ranks."""
    if size() == 1:
        return 1.0
    return float(x.numel()) if mask is None else mask.sum()


def mean(x: Tensor, weight: Tensor | float) -> Tensor:
    """Gives the mean of all ranks' `x`, each by its weight; 0 where none weighs anything."""
    if size() == 1:
        return x
    of = torch.as_tensor(weight, dtype=torch.float64, device=x.device)
    packed = total(torch.cat([(x * of).reshape(-1), of.reshape(1)]))
    return (packed[:-1] / packed[-1].clamp(min=1.0)).to(x.dtype).view_as(x)


def merged(count: Tensor | int, mean: Tensor, var: Tensor) -> tuple[Tensor | int, Tensor, Tensor]:
    """Gives count, mean and variance of all ranks' values from those of each (Chan et al. 1983)."""
    if size() == 1:
        return count, mean, var
    number = torch.as_tensor(count, device=mean.device).reshape(1)
    each = gathered(torch.cat([number, mean.reshape(-1), var.reshape(-1)]).double())
    n, means, spreads = torch.split(each, [1, mean.numel(), mean.numel()], 1)
    # The mean of a rank without a value is no number, and has no say.
    means, spreads = torch.where(n > 0, means, 0.0), torch.where(n > 0, spreads, 0.0)
    whole, least = n.sum(), n.sum().clamp(min=1.0)
    centre = (n * means).sum(0) / least
    spread = (n * (spreads + (means - centre).square())).sum(0) / least
    return whole, centre.to(mean.dtype).view_as(mean), spread.to(var.dtype).view_as(var)
