"""Which items a draw takes: uniform, by priority, the newest; and which it is the last to take. Knows positions of a
storage, not what lies there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.config import TableConfig

_FAN = 16
_ONES, _RUNNING = np.ones(_FAN), np.triu(np.ones((_FAN, _FAN)))
# One running sum over this many is cheaper than another level.
_TOP = 4096
# So that no item is lost for ever, however small its error was once.
_LEAST = 1e-8


class SumTree:
    """Non-negative weights [size], float64, and what they sum to in blocks; every batch costs a few array operations.

    Sums are made anew from what is below them, so rounding errors do not add up.
    """

    def __init__(self, size: int) -> None:
        self._levels = [np.zeros(_blocks(size) * _FAN)]
        while len(self._levels[-1]) > _TOP:
            self._levels.append(np.zeros(_blocks(len(self._levels[-1]) // _FAN) * _FAN))
        self.weights, self.nbytes = self._levels[0], sum(level.nbytes for level in self._levels)

    @property
    def total(self) -> float:
        return float(self._levels[-1].sum())

    def set(self, index: np.ndarray, weights: np.ndarray | float) -> None:
        """Gives the items at `index` [n] their weights; of an item that comes twice, the last one stands."""
        self.weights[index] = weights
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            index = index // _FAN
            if len(index) > 1:
                # Neighbours share a block: what was inserted together is summed once.
                index = index[np.append(True, index[1:] != index[:-1])]
            above[index] = below.reshape(-1, _FAN).take(index, axis=0) @ _ONES

    def draw(self, n: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Gives `n` indices, one from each of n equal strata of the total (> 0), and their weights."""
        drawn = self._find((random.random(n) + np.arange(n)) / n)
        # Rounding at a block's edge can lead to a neighbour without weight.
        while not (weights := self.weights.take(drawn)).all():
            missed = np.flatnonzero(weights == 0)
            drawn[missed] = self._find(random.random(len(missed)))
        return drawn, weights

    def _find(self, share: np.ndarray) -> np.ndarray:
        top = self._levels[-1]
        sums = top.cumsum()
        left = share * sums[-1]
        block: np.ndarray = np.minimum(sums.searchsorted(left, side="right"), len(top) - 1)
        left -= sums.take(block) - top.take(block)
        rows = np.arange(len(share)) * _FAN
        for level in self._levels[-2::-1]:
            weights = level.reshape(-1, _FAN).take(block, axis=0)
            running = weights @ _RUNNING
            np.minimum(left, running[:, -1] * (1 - 1e-15), out=left)
            child = (running > left[:, None]).argmax(axis=1)
            block = block * _FAN + child
            child += rows
            left -= running.ravel().take(child) - weights.ravel().take(child)
        return block


def _blocks(size: int) -> int:
    return math.ceil(size / _FAN)


class Uniform:
    """Every item alike."""

    def __init__(self, capacity: int) -> None:
        self._ready = np.zeros(capacity, np.bool_)
        self.size, self.nbytes = 0, capacity

    @property
    def mass(self) -> float:
        return float(self.size)

    def add(self, positions: np.ndarray, priorities: np.ndarray | None) -> None:
        """Makes new items drawable, which enter in one call once each."""
        self._ready[positions] = True
        self.size += len(positions)

    def clear(self, positions: np.ndarray) -> None:
        """Takes away the items at `positions`, if there are any."""
        self.size -= int(np.count_nonzero(self._ready[positions]))
        self._ready[positions] = False

    def draw(self, n: int, filled: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Gives positions [n], with replacement, and the probability of each; items lie at positions < `filled`."""
        if self.size < filled // 8:
            # Where few are left, to try places would take a long time.
            places = np.flatnonzero(self._ready[:filled])
            drawn = places[random.integers(len(places), size=n)]
            return drawn, self.chances(drawn)
        drawn = random.integers(filled, size=n)
        if self.size < filled:
            drawn = drawn[self._ready.take(drawn)]
            while len(drawn) < n:
                more = random.integers(filled, size=math.ceil((n - len(drawn)) * filled / self.size) + 8)
                drawn = np.append(drawn, more[self._ready.take(more)])[:n]
        return drawn, self.chances(drawn)

    def chances(self, positions: np.ndarray) -> np.ndarray:
        """Gives the probability that a draw takes each of these items."""
        return np.full(len(positions), 1.0 / self.size)

    def state(self) -> dict[str, Any]:
        return {"ready": self._ready, "size": self.size}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._ready[:] = state["ready"]
        self.size = state["size"]


class Prioritized:
    """Items in proportion to priority ** alpha (Schaul et al., 2016); new ones enter at the largest priority so far."""

    def __init__(self, capacity: int, alpha: float) -> None:
        self._tree = SumTree(capacity)
        self._alpha = alpha
        self._largest = 1.0
        self.size, self.nbytes = 0, self._tree.nbytes

    @property
    def mass(self) -> float:
        return self._tree.total

    def add(self, positions: np.ndarray, priorities: np.ndarray | None) -> None:
        """Makes new items drawable; a priority that is not finite, or none, is the largest."""
        if priorities is None:
            self._tree.set(positions, self._largest**self._alpha)
        else:
            self._set(positions, np.where(np.isfinite(priorities), priorities, self._largest))
        self.size += len(positions)

    def clear(self, positions: np.ndarray) -> None:
        """Takes away the items at `positions`, if there are any."""
        self.size -= int(np.count_nonzero(self._tree.weights[positions]))
        self._tree.set(positions, 0.0)

    def update(self, positions: np.ndarray, priorities: np.ndarray) -> int:
        """Sets priorities (finite, ≥ 0) of items; gives how many there were: a position without one is passed over."""
        here = self._tree.weights.take(positions) > 0
        self._set(positions[here], priorities[here])
        return int(np.count_nonzero(here))

    def draw(self, n: int, filled: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Gives positions [n], stratified, and the probability of each."""
        drawn, weights = self._tree.draw(n, random)
        return drawn, weights / self._tree.total

    def chances(self, positions: np.ndarray) -> np.ndarray:
        """Gives the probability that a draw takes each of these items."""
        chances: np.ndarray = self._tree.weights.take(positions) / self._tree.total
        return chances

    def state(self) -> dict[str, Any]:
        return {"weights": self._tree.weights, "largest": self._largest, "size": self.size}

    def restore(self, state: Mapping[str, Any]) -> None:
        weights = state["weights"]
        self._tree.set(np.arange(len(weights)), weights)
        self._largest, self.size = state["largest"], state["size"]

    def _set(self, positions: np.ndarray, priorities: np.ndarray) -> None:
        if len(positions):
            self._largest = max(self._largest, float(priorities.max()))
            self._tree.set(positions, np.maximum(priorities, _LEAST) ** self._alpha)


class _Over:
    """What lies over another selector, whose items it draws."""

    _rest: Uniform | Prioritized | NewestFirst

    @property
    def size(self) -> int:
        return self._rest.size

    @property
    def mass(self) -> float:
        return self._rest.mass


class NewestFirst(_Over):
    """A `share` of each draw are the newest items, each once, in the order they came; the rest is `rest`'s to draw."""

    _rest: Uniform | Prioritized

    def __init__(self, rest: Uniform | Prioritized, capacity: int, share: float) -> None:
        self._rest, self._share = rest, share
        # By place, the number of the item there (0: none), and by number the place. While an item is here, others
        # complete whose steps came up to a whole ring before or after its own: at most twice the capacity.
        self._number = np.zeros(capacity, np.int64)
        self._place = np.zeros(2 * capacity, np.int32)
        self._last = 0
        self.nbytes = rest.nbytes + self._number.nbytes + self._place.nbytes

    def add(self, positions: np.ndarray, priorities: np.ndarray | None) -> None:
        """Makes new items drawable, the last of them the newest."""
        self._rest.add(positions, priorities)
        numbers = self._last + 1 + np.arange(len(positions))
        self._number[positions], self._place[numbers % len(self._place)] = numbers, positions
        self._last += len(positions)

    def clear(self, positions: np.ndarray) -> None:
        """Takes away the items at `positions`, if there are any."""
        self._rest.clear(positions)
        self._number[positions] = 0

    def draw(self, n: int, filled: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Gives positions [n], the newest first, and the probability of each: what the rest of the draw would take,
        and one n-th more for each of the newest. A share of n that is no whole number is rounded at random."""
        newest = self._newest(int(self._share * n + random.random()))
        drawn = np.append(newest, self._rest.draw(n - len(newest), filled, random)[0])
        chances = self._rest.chances(drawn) * (1 - len(newest) / n)
        if len(newest):
            chances += (self._number.take(drawn) >= self._number[newest[0]]) / n
        return drawn, chances

    def state(self) -> dict[str, Any]:
        return {"rest": self._rest.state(), "number": self._number, "place": self._place, "last": self._last}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rest.restore(state["rest"])
        self._number[:], self._place[:], self._last = state["number"], state["place"], state["last"]

    def _newest(self, count: int) -> np.ndarray:
        """Gives the places of the newest `count` items, the oldest of them first; fewer where there are no more."""
        known, back = min(self._last, len(self._place)), count
        while True:
            numbers = self._last - np.arange(min(back, known))[::-1]
            places = self._place.take(numbers % len(self._place))
            here: np.ndarray = places[self._number.take(places) == numbers]
            if len(here) >= count or back >= known:
                return here[max(0, len(here) - count) :]
            back *= 2


class TakenAway(_Over):
    """Draws as `rest` does, and takes an item away after the draw that makes it `times`, twice in one draw included."""

    def __init__(self, rest: Uniform | Prioritized | NewestFirst, capacity: int, times: int) -> None:
        self._rest, self._times = rest, times
        self._drawn = np.zeros(capacity, np.int32)
        self.nbytes = rest.nbytes + self._drawn.nbytes

    def add(self, positions: np.ndarray, priorities: np.ndarray | None) -> None:
        """Makes new items drawable, `times` from now on."""
        self._rest.add(positions, priorities)
        self._drawn[positions] = 0

    def clear(self, positions: np.ndarray) -> None:
        """Takes away the items at `positions`, if there are any."""
        self._rest.clear(positions)

    def draw(self, n: int, filled: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Gives positions [n] and the probability that `rest` took each with."""
        drawn, chances = self._rest.draw(n, filled, random)
        places, counts = np.unique(drawn, return_counts=True)
        self._drawn[places] += counts
        self._rest.clear(places[self._drawn[places] >= self._times])
        return drawn, chances

    def state(self) -> dict[str, Any]:
        return {"rest": self._rest.state(), "drawn": self._drawn}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rest.restore(state["rest"])
        self._drawn[:] = state["drawn"]


Selector = Uniform | Prioritized | NewestFirst | TakenAway


def selector_of(config: TableConfig, capacity: int) -> tuple[Selector, Prioritized | None]:
    """Gives what a ring's config describes, and what of it takes priorities."""
    by_priority = Prioritized(capacity, config.alpha) if config.kind == "prioritized" else None
    rest = by_priority or Uniform(capacity)
    selector = NewestFirst(rest, capacity, config.newest) if config.newest else rest
    times = config.max_times_sampled
    return (TakenAway(selector, capacity, times) if times else selector), by_priority
