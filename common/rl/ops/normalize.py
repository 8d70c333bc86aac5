"""Running moments of a stream of tensors, and the two things they scale: observations and value targets.

Knows nothing of policies or of optimisers. Moments are float64 and are merged in batches (Chan et al. 1983), of all
ranks together where a learner has several.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.rl import ranks

_EPSILON = 1e-8
_LEAST_STD = 1e-4
_STEP = 3e-4  # Hessel et al. 2019


class Moments(nn.Module):
    """Count, mean and variance of all the values folded in so far; element-wise over `shape`."""

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))

    @torch.no_grad()
    def fold(self, values: Tensor) -> None:
        """Merges the statistics of `values`, [N, *shape]; an empty batch changes nothing."""
        count = values.shape[0]
        # The variance of nothing would come with a warning.
        of = values.double() if count else torch.zeros_like(self.mean).unsqueeze(0)
        var, mean = torch.var_mean(of, 0, correction=0)
        n, mean, var = ranks.merged(count, mean, var)
        if n == 0:
            return
        total = self.count + n
        delta = mean - self.mean
        spread = self.var * self.count + var * n + delta * delta * (self.count * n / total)
        self.mean += delta * (n / total)
        self.var.copy_(spread / total)
        self.count.copy_(total)


class ObservationNormalizer(nn.Module):
    """Maps x [N, width] to (x - mean) / std, cut to ±10; its statistics are buffers, so they ship with the weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.moments = Moments((width,))
        # Derived float32 copies: they are never saved, and follow every load.
        self.register_buffer("mean", torch.zeros(width), persistent=False)
        self.register_buffer("scale", torch.ones(width), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.scale).clamp_(-10.0, 10.0)

    def fold(self, x: Tensor) -> None:
        """Merges x [N, width] into the statistics that later calls use."""
        self.moments.fold(x)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the float32 copies up to date; whoever writes the buffers in place must call it."""
        self.mean.copy_(self.moments.mean)
        self.scale.copy_((self.moments.var + _EPSILON).rsqrt())


class PopArt(nn.Module):
    """Keeps the mean and std of value targets, in whose units a value head is trained (van Hasselt et al. 2016).

    The statistics belong to the targets and to no column of a batch, so it does not matter which environments a batch
    came from. The n-th update enters with weight 4/(n + 3), so that the last quarter of a job tells (polynomial decay,
    Shamir and Zhang 2013), and never with less than `_STEP`. All of it is buffers.
    """

    mean: Tensor
    square: Tensor
    updates: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("square", torch.ones((), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.float64))
        # Float32 copies, taken where the statistics change: every minibatch asks for them.
        self.register_buffer("offset", torch.zeros(()), persistent=False)
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the float32 copies up to date; whoever writes the buffers in place must call it."""
        self.offset.copy_(self.mean)
        self.scale.copy_((self.square - self.mean.square()).clamp(min=_LEAST_STD**2).sqrt())

    def raw(self, value: Tensor) -> Tensor:
        """Gives what a head's output is worth in the environment's units."""
        return value * self.scale + self.offset

    def normalized(self, target: Tensor) -> Tensor:
        """Gives a raw target in the head's units: the inverse of `raw`."""
        return (target - self.offset) / self.scale

    @torch.no_grad()
    def fold(self, target: Tensor, mask: Tensor | None, head: nn.Linear) -> None:
        """Merges raw targets [T, B] into the statistics, and changes the head in place so that its raw values stay."""
        weight = torch.ones_like(target, dtype=torch.float64) if mask is None else mask.double()
        known = target.double() if mask is None else torch.where(mask, target, 0.0).double()
        count, summed, squares = weight.sum(), known.sum(), known.square().sum()
        if ranks.size() > 1:
            count, summed, squares = ranks.total(torch.stack([count, summed, squares]))
        mean, std = self.offset.clone(), self.scale.clone()
        self.updates.add_(count > 0)
        # A batch in which nothing counts has no say; nothing waits for the device to learn so.
        step = (4.0 / (self.updates + 3.0)).clamp(_STEP, 1.0) * (count > 0)
        for moment, value in ((self.mean, summed), (self.square, squares)):
            moment.lerp_(value / count.clamp(min=1.0), step)
        self.refresh()
        head.weight.mul_(std / self.scale)
        head.bias.copy_((head.bias * std + mean - self.offset) / self.scale)
