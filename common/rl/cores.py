"""Recurrent cores: features in, features out, and a state between that is dropped wherever an episode begins.

Knows no observation and no action. A core's state is the tensors that `names` lists, [N, size] each; the first of them
is also what it puts out. `step` takes one step, `first` [N] bool, or None: no episode begins. `unroll` gives the state
after each row, [T, B, size], from the one before the first row; `first` is [T, B].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from common.rl.activations import tanh
from common.rl.encoders import orthogonal
from common.types import ArraySpec

State = tuple[Tensor, ...]


def _unroll(cell: Callable[[Tensor, State], State], driven: Tensor, first: Tensor, state: State) -> State:
    keep = (~first).to(driven.dtype).unsqueeze(-1).unbind(0)
    # Looking at them on another device would wait for it: there the state is multiplied at every step.
    resets = first.any(1).tolist() if first.device.type == "cpu" else [True] * len(first)
    rows = []
    for t, x in enumerate(driven.unbind(0)):
        if resets[t]:
            state = tuple(s * keep[t] for s in state)
        state = cell(x, state)
        rows.append(state)
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _kept(first: Tensor | None, state: State) -> State:
    if first is None:
        return state
    keep = (~first).to(state[0].dtype).unsqueeze(-1)
    return tuple(s * keep for s in state)


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997); its state is (h, c)."""

    def __init__(self, width: int, size: int, owner: str = "") -> None:
        super().__init__()
        self.size = size
        self.names = (f"{owner}h", f"{owner}c")
        # Gates lie as input, forget, output, cell: one sigmoid serves the first three.
        self.input = orthogonal(nn.Linear(width, 4 * size), 1.0)
        self.recurrent = orthogonal(nn.Linear(size, 4 * size, bias=False), 1.0)

    def _cell(self, driven: Tensor, state: State) -> State:
        h, c = state
        gates = driven + self.recurrent(h)
        i, f, o = gates[:, : 3 * self.size].sigmoid().chunk(3, -1)
        c = torch.addcmul(f * c, i, tanh(gates[:, 3 * self.size :]))
        return o * tanh(c), c

    def step(self, features: Tensor, first: Tensor | None, state: State) -> State:
        return self._cell(self.input(features), _kept(first, state))

    def unroll(self, features: Tensor, first: Tensor, state: State) -> State:
        return _unroll(self._cell, self.input(features), first, state)


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014), reset gate after the product, as cuDNN has it; its state is (h,)."""

    def __init__(self, width: int, size: int, owner: str = "") -> None:
        super().__init__()
        self.size = size
        self.names = (f"{owner}h",)
        # Gates lie as reset, update, candidate.
        self.input = orthogonal(nn.Linear(width, 3 * size), 1.0)
        self.recurrent = orthogonal(nn.Linear(size, 3 * size), 1.0)

    def _cell(self, driven: Tensor, state: State) -> State:
        (h,) = state
        back = self.recurrent(h)
        r, z = (driven[:, : 2 * self.size] + back[:, : 2 * self.size]).sigmoid().chunk(2, -1)
        candidate = tanh(torch.addcmul(driven[:, 2 * self.size :], r, back[:, 2 * self.size :]))
        return (torch.lerp(candidate, h, z),)

    def step(self, features: Tensor, first: Tensor | None, state: State) -> State:
        return self._cell(self.input(features), _kept(first, state))

    def unroll(self, features: Tensor, first: Tensor, state: State) -> State:
        return _unroll(self._cell, self.input(features), first, state)


Core = LSTM | GRU


def core_of(width: int, lstm: int, gru: int, owner: str = "") -> Core | None:
    """Builds the core whose size is not 0, over features [N, width]; None where neither is.

    `owner` is what the names of its state begin with, for a second core beside one without.
    """
    return LSTM(width, lstm, owner) if lstm else GRU(width, gru, owner) if gru else None


def state_specs(core: Core | None) -> tuple[ArraySpec, ...]:
    """Gives what a core carries from step to step, per environment."""
    return () if core is None else tuple(ArraySpec(name, "<f4", (core.size,)) for name in core.names)


def stepped(
    core: Core | None, features: Tensor, first: Tensor, state: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gives a core's output after one step and its new state by name; without a core the features, and no state."""
    if core is None:
        return features, {}
    after = core.step(features, first, tuple(state[name] for name in core.names))
    return after[0], dict(zip(core.names, after, strict=True))
