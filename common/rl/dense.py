"""MLPs side by side as one module, as fast as the processor allows; knows neither observations nor what outputs mean.

oneDNN uses AVX-512 on every processor that has it, the BLAS that torch calls on Intel's alone. On others' products of
some size oneDNN takes half as long; on Intel's a tenth longer, and without AVX-512 up to five times as long. It also
adds the bias and applies a ReLU on the way, where torch passes over the output again for each: on Intel's too it takes
half as long once an output is too large for the cache. A whole MLP is one node of the graph, since on small ones
autograd costs as much as the arithmetic.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.rl.activations import tanh
from common.rl.processor import is_intel

Activation = Literal["tanh", "relu"]
# Multiply-adds below which calling oneDNN costs more than it saves.
_WORTHWHILE = 1 << 19
# Numbers of an output that a core's cache has no room for.
_LARGE = 1 << 19
_ONEDNN: bool = (
    torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
)
_INTEL = is_intel()


def _to_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if _INTEL:
        return bias is not None and x.shape[0] * weight.shape[1] >= _LARGE
    return x.shape[0] * weight.numel() >= _WORTHWHILE


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """Gives x [N, I] @ weight [I, O] + bias [O], float32 on the CPU, and with `relu` no less than 0."""
    if _ONEDNN and _to_onednn(x, weight, bias):
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight.t(), bias, "relu" if relu else "none", [], "")
        return y
    y = torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
    return y.relu_() if relu else y


def _layer(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation) -> Tensor:
    y = _product(x, weight, bias, activation == "relu")
    return tanh(y) if activation == "tanh" else y


def _slope(gradient: Tensor, y: Tensor, activation: Activation) -> Tensor:
    """Gives the gradient before an activation of the one after it, whose output was y."""
    if activation == "tanh":
        before: Tensor = torch.ops.aten.tanh_backward(gradient, y)
    else:
        # In place: it is fresh from a product, and memory that is new costs as much as the arithmetic.
        before = torch.ops.aten.threshold_backward.grad_input(gradient, y, 0, grad_input=gradient)
    return before


class _Stack(torch.autograd.Function):
    """x [N, I], for all members, or [E, N, I]; parameters are weight [E, in, out] and bias [E, 1, out] in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, *parameters: Tensor) -> Tensor:
        layers = [p.unbind() for p in parameters]
        last, kept, outputs = len(layers) // 2 - 1, [], []
        for member in range(len(layers[0])):
            y = x if x.ndim == 2 else x[member]
            for i in range(last + 1):
                weight, bias = layers[2 * i][member], layers[2 * i + 1][member][0]
                if i == last:
                    outputs.append(_product(y, weight, bias))
                else:
                    y = _layer(y, weight, bias, activation)
                    kept.append(y)
        ctx.activation, ctx.count = activation, len(parameters)
        ctx.learns = any(p.requires_grad for p in parameters)
        ctx.save_for_backward(x, *parameters, *kept)
        return torch.stack(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        weights = [w.unbind() for w in saved[: ctx.count : 2]]
        hidden, last = saved[ctx.count :], len(weights) - 1
        before: list[Tensor] = []
        found: list[list[Tensor]] = [[] for _ in range(ctx.count)]
        for member, g in enumerate(gradient.unbind()):
            for i in range(last, -1, -1):
                y = hidden[member * last + i - 1] if i else x if x.ndim == 2 else x[member]
                if ctx.learns:
                    found[2 * i].append(_product(y.t(), g))
                    found[2 * i + 1].append(g.sum(0, keepdim=True))
                if i:
                    g = _slope(_product(g, weights[i][member].t()), y, ctx.activation)
                elif ctx.needs_input_grad[0]:
                    before.append(_product(g, weights[0][member].t()))
        joined = [torch.stack(own) if ctx.learns else None for own in found]
        if not before:
            return None, None, *joined
        return torch.stack(before) if x.ndim == 3 else torch.stack(before).sum(0), None, *joined


class _Tower(torch.autograd.Function):
    """x [N, I] through layers that are all activated; parameters are weight [out, in] and bias [out] in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, *parameters: Tensor) -> Tensor:
        kept = [x]
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            kept.append(_layer(kept[-1], weight.t(), bias, activation))
        ctx.activation, ctx.count = activation, len(parameters)
        ctx.save_for_backward(*parameters, *kept)
        return kept[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, kept = ctx.saved_tensors[: ctx.count : 2], ctx.saved_tensors[ctx.count :]
        found: list[Tensor | None] = [None] * ctx.count
        before: Tensor | None = gradient.clone() if ctx.activation == "relu" else gradient
        for i in range(len(weights) - 1, -1, -1):
            assert before is not None
            slope = _slope(before, kept[i + 1], ctx.activation)
            # This way round: narrow inputs against the layout of the product cost several times as much.
            found[2 * i], found[2 * i + 1] = _product(kept[i].t(), slope).t(), slope.sum(0)
            before = _product(slope, weights[i]) if i or ctx.needs_input_grad[0] else None
        return before, None, *found


def tower(x: Tensor, activation: Activation, parameters: list[Tensor]) -> Tensor:
    """Gives [N, out] of x [N, in] through dense layers, each activated: weight [out, in] and bias [out] in turn."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return _Tower.apply(x, activation, *parameters)  # type: ignore[no-any-return,no-untyped-call]
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        x = functional.linear(x, weight, bias)
        x = x.tanh() if activation == "tanh" else x.relu()
    return x


class Ensemble(nn.Module):
    """`members` MLPs of the same `sizes` (input, hidden ..., output): weights [E, in, out], biases [E, 1, out].

    Weights and biases begin uniform within ±1/√in. The last layer has no activation.
    """

    def __init__(self, members: int, sizes: tuple[int, ...], activation: Activation) -> None:
        super().__init__()
        self._activation: Activation = activation
        for i, (before, after) in enumerate(pairwise(sizes)):
            bound = 1.0 / math.sqrt(before)
            for name, shape in (("weight", (before, after)), ("bias", (1, after))):
                parameter = nn.Parameter(torch.empty(members, *shape).uniform_(-bound, bound))
                self.register_parameter(f"{name}_{i}", parameter)

    def forward(self, x: Tensor, frozen: bool = False, members: int | None = None) -> Tensor:
        """Gives [E, N, output] of x [N, input], or [E, N, input], by the first `members` of them or all.

        `frozen`: gradients reach x, not the parameters.
        """
        # Not self.parameters(), which walks the module: that takes as long as a small layer.
        parameters = [p.detach() if frozen else p for p in self._parameters.values() if p is not None]
        if members is not None:
            parameters = [p[:members] for p in parameters]
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return _Stack.apply(x, self._activation, *parameters)  # type: ignore[no-any-return,no-untyped-call]
        y = x if x.ndim == 3 else x.expand(parameters[0].shape[0], *x.shape)
        for i in range(0, len(parameters), 2):
            y = torch.baddbmm(parameters[i + 1], y, parameters[i])
            if i < len(parameters) - 2:
                y = y.tanh() if self._activation == "tanh" else y.relu()
        return y
