"""The random order in which an epoch's steps or columns are trained on: the same however many ranks share a batch.

Each rank draws the order of the whole batch and takes its own part of every minibatch. So a minibatch is what it would
be on one rank, and all ranks' generators stay equal. Knows no policy and no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from common.rl import ranks
from common.rl.batch import Batch


@dataclass(frozen=True, slots=True)
class Epoch:
    """Places `chosen` [n] (t * B + b) in their order; minibatch i is those from bounds[i] to bounds[i + 1].

    `counted` [n] bool is False for the place that stands where this rank has none of a minibatch; None: there is none.
    """

    chosen: Tensor
    bounds: list[int]
    counted: Tensor | None


def valid_places(batch: Batch) -> Tensor | None:
    """Gives the places of the valid steps of the whole batch; None: all are."""
    valid = batch.valid
    if ranks.size() > 1:
        here = torch.ones_like(batch.terminated) if valid is None else valid
        valid = ranks.gathered(here.byte()).permute(1, 2, 0).bool()
    return None if valid is None else valid.flatten().nonzero().squeeze(-1)


class Order:
    """Draws the order of each epoch's `minibatches`; the generator's state is all that a resume needs."""

    def __init__(self, minibatches: int, seed: int, device: torch.device) -> None:
        self._minibatches = minibatches
        self._device = device
        self._generator = torch.Generator().manual_seed(seed)

    def _draw(self, n: int) -> Tensor:
        # Drawn on the CPU whatever the device is, so that a resume elsewhere keeps the order.
        return torch.randperm(n, generator=self._generator).to(self._device)

    def steps(self, here: int, places: Tensor | None) -> Epoch:
        """Gives an epoch over the `places` of the whole batch; None: over all, of which `here` are this rank's."""
        n = here * ranks.size() if places is None else places.shape[0]
        order = self._draw(n)
        # One that counts nowhere, where no place does: every algorithm takes its step, of no gradient.
        chosen, parts = order if places is None else places[order], max(1, min(self._minibatches, n))
        bounds = [n * i // parts for i in range(parts + 1)]
        return Epoch(chosen, bounds, None) if ranks.size() == 1 and n else _own(chosen, bounds)

    def columns(self, here: int) -> Iterator[tuple[Tensor, bool]]:
        """Gives this rank's columns of each minibatch, of `here` in all, and whether they count."""
        whole = here * ranks.size()
        for index in self._draw(whole).tensor_split(min(self._minibatches, whole)):
            yield _or_stand_in(ranks.own(index))

    def get_state(self) -> Tensor:
        return self._generator.get_state()

    def set_state(self, state: Tensor) -> None:
        self._generator.set_state(state)


def _own(chosen: Tensor, bounds: list[int]) -> Epoch:
    parts = [_or_stand_in(ranks.own(chosen[start:stop])) for start, stop in pairwise(bounds)]
    limits = [0]
    for part, _ in parts:
        limits.append(limits[-1] + part.shape[0])
    counted = None
    if not all(counts for _, counts in parts):
        counted = torch.cat([torch.full_like(part, counts, dtype=torch.bool) for part, counts in parts])
    return Epoch(torch.cat([part for part, _ in parts]), limits, counted)


def _or_stand_in(part: Tensor) -> tuple[Tensor, bool]:
    """Gives a part that is not empty, for every rank takes every step, and whether it counts."""
    return (part, True) if part.shape[0] else (part.new_zeros(1), False)
