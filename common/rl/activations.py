"""tanh as fast as the processor allows: numpy's, under autograd. Knows no network.

On AVX-512 numpy's takes a tenth of the time of torch's, which in small networks is most of a pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def _numpy_tanh(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    np.tanh(x.numpy(), out=y.numpy())
    return y


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _numpy_tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        before: Tensor = torch.ops.aten.tanh_backward(gradient, y)
        return before


def tanh(x: Tensor) -> Tensor:
    """Gives tanh(x) of x of any shape; its gradient cannot be differentiated again on the CPU."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.tanh(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Tanh.apply(x)  # type: ignore[no-any-return,no-untyped-call]
    return _numpy_tanh(x)
