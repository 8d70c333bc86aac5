"""What temporal-difference learning of action values is made of: pure functions that know no network."""

from __future__ import annotations

import torch
from torch import Tensor


def huber(error: Tensor, threshold: float) -> Tensor:
    """Gives ½ error² within ± threshold, and threshold (|error| - ½ threshold) beyond it (Huber 1964)."""
    size = error.abs()
    near = size.clamp(max=threshold)
    return near * (size - 0.5 * near)


def of_action(values: Tensor, action: Tensor) -> Tensor:
    """Gives what `values` [N, A, K] hold for one action each, [N, K]; `action` is [N], of any integer type."""
    rows = torch.arange(values.shape[0], device=values.device)
    return values[rows, action.long()]


def rescale(x: Tensor, eps: float) -> Tensor:
    """Gives h(x) = sign(x) (√(|x| + 1) - 1) + eps x, which makes large returns small (Pohlen et al. 2018)."""
    # √(1 + a) - 1 written without the difference, which float32 would lose near zero.
    size = x.abs()
    return x.sign() * size / ((size + 1.0).sqrt() + 1.0) + eps * x


def unrescale(y: Tensor, eps: float) -> Tensor:
    """Gives h⁻¹(y), exactly.

    With s = √(|x| + 1), h says eps s² + s = |y| + 1 + eps, whose positive root gives |x| = s² - 1.
    """
    size = y.abs()
    # s - 1, again without a difference of near numbers.
    above = 2.0 * size / (1.0 + 2.0 * eps + ((1.0 + 2.0 * eps) ** 2 + 4.0 * eps * size).sqrt())
    return y.sign() * above * (above + 2.0)
