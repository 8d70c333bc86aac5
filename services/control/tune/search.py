"""The search: which settings to measure next. Knows rates and nothing of how they come about, nor of time.

A coordinate descent on a logarithmic scale from where the job stands: each size climbs while a step brings more than
noise would, wide steps before narrow ones, until a whole round changes nothing. The best points are measured again, in
turn, and the descent goes on from the winner if it is another. Then it starts anew from near the best, with a few sizes
changed at random: sizes depend on each other, and a better choice may be several steps away at once. It measures some
tens of points of a grid of hundreds.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from itertools import product

MARGIN = 1.02  # a step up must gain this factor: less is noise, and of equals the smaller is the better choice
SHORTEST_UNROLL = 8
FINALISTS = 4
ROUNDS = 3  # of each finalist, before the descent goes on or ends
KICKS = 20  # new starts in a row that may bring nothing
KICKED = 3  # sizes that a new start changes


@dataclass(frozen=True, slots=True)
class Point:
    """One choice of sizes; `merge` is whether one forward pass may serve all waiting requests, or one each."""

    envs: int
    servers: int
    inference: int
    groups: int
    merge: bool
    unroll: int


@dataclass(frozen=True, slots=True)
class Space:
    """The values that each size may take, ascending. `batch` fixes servers * groups * envs * unroll, unless it is 0;
    `runs` says of a point whether a job of its sizes would run, or be refused."""

    envs: tuple[int, ...]
    servers: tuple[int, ...]
    inference: tuple[int, ...]
    groups: tuple[int, ...]
    merge: tuple[bool, ...]
    unroll: tuple[int, ...]
    batch: int = 0
    runs: Callable[[Point], bool] = field(default=lambda _: True, compare=False)

    def fit(self, point: Point) -> Point | None:
        """Gives `point` with the unroll that keeps the batch, None where there is none, or where it cannot be."""
        if point.inference > point.servers * point.groups or (point.merge and point.servers * point.groups == 1):
            return None
        if self.batch:
            unroll, rest = divmod(self.batch, point.servers * point.groups * point.envs)
            if rest or unroll < min(SHORTEST_UNROLL, *self.unroll):
                return None
            point = replace(point, unroll=unroll)
        return point if self.runs(point) else None

    def grid(self) -> list[Point]:
        """Gives every point there is."""
        unrolls = (0,) if self.batch else self.unroll
        every = product(self.envs, self.servers, self.inference, self.groups, self.merge, unrolls)
        return [fitted for values in every if (fitted := self.fit(Point(*values))) is not None]

    def moved(self, point: Point, size: str, by: int) -> Point | None:
        """Gives the point `by` values further along `size`; `processes` moves both kinds of servers together."""
        changes = {}
        for name in ("servers", "inference") if size == "processes" else (size,):
            values: tuple[int, ...] = getattr(self, name)
            index = values.index(getattr(point, name)) + by
            if not 0 <= index < len(values):
                return None
            changes[name] = values[index]
        return self.fit(replace(point, **changes))  # type: ignore[arg-type]

    @property
    def climbs(self) -> tuple[tuple[str, int], ...]:
        """Gives what to climb along and how wide each step is, first what usually brings most."""
        order = (
            ("envs", 2),
            ("processes", 1),
            ("servers", 1),
            ("inference", 1),
            ("envs", 1),
            ("groups", 1),
            ("merge", 1),
        )
        return order if self.batch else (*order, ("unroll", 1))


class Search:
    """One search from `start`. `rates` holds every rate of each point so far, also while `points` goes on."""

    def __init__(self, space: Space, start: Point, kicks: int = KICKS) -> None:
        self._space = space
        self._here = start
        self._kicks = kicks
        self._random = random.Random(0)
        self.rates: dict[Point, list[float]] = {}
        self.finals = False

    def points(self, hurry: Callable[[], bool]) -> Generator[Point, float, None]:
        """Yields points to measure and is sent the rate of each: a descent, its best ones again, and new starts.

        It ends when so many new starts in a row brought nothing, or with the finals after `hurry()`.
        """
        yield from self._descend(hurry)
        best = yield from self._decide(hurry)
        vain = 0
        while vain < self._kicks and not hurry():
            self._here = self._kicked(best)
            yield from self._descend(hurry)
            vain += 1
            if self.rate(self._here) > self.rate(best):
                found = yield from self._decide(hurry)
                vain = 0 if found != best else vain
                best = found

    def _decide(self, hurry: Callable[[], bool]) -> Generator[Point, float, Point]:
        """Measures the best points again, and goes on from the winner until it is where the descent ends."""
        while True:
            self.finals = True
            finalists = self._finalists()
            for _ in range(ROUNDS):
                for point in finalists:
                    yield from self._measure(point)
            self.finals = False
            best = max(finalists, key=self.rate)
            better = self.rate(best) > self.rate(self._here) * MARGIN
            self._here = best
            if not better or hurry():
                return best
            yield from self._descend(hurry)

    def _kicked(self, best: Point) -> Point:
        """Gives a point that differs from `best` in a few sizes, one that was not measured yet if there is one near."""
        sizes, found = sorted({size for size, _ in self._space.climbs}), best
        for _ in range(100):
            found = best
            for size in self._random.sample(sizes, KICKED):
                found = self._space.moved(found, size, self._random.choice((-1, 1))) or found
            if found not in self.rates:
                break
        return found

    @property
    def best(self) -> Point | None:
        """The point with the best median among those measured often, if any were: a lucky figure does not win."""
        # The finals' winner was measured in one of them at least, whoever stood in all of them.
        most = min(ROUNDS + 1, max(map(len, self.rates.values()), default=0))
        often = [point for point, rates in self.rates.items() if 2 * len(rates) >= most]
        return max(often, key=self.rate, default=None)

    def rate(self, point: Point) -> float:
        """Gives the median of a point's rates."""
        return statistics.median(self.rates[point])

    def _measure(self, point: Point) -> Generator[Point, float, None]:
        rate = yield point
        self.rates.setdefault(point, []).append(rate)

    def _descend(self, hurry: Callable[[], bool]) -> Generator[Point, float, None]:
        if self._here not in self.rates:
            yield from self._measure(self._here)
        before = None
        while before != self._here:
            before = self._here
            for size, stride in self._space.climbs:
                yield from self._climb(size, stride, hurry)

    def _climb(self, size: str, stride: int, hurry: Callable[[], bool]) -> Generator[Point, float, None]:
        """Follows one size up for as long as each step gains, or else down for as long as none loses."""
        for by in (stride, -stride):
            began = self._here
            while (ahead := self._space.moved(self._here, size, by)) is not None and not hurry():
                if ahead not in self.rates:
                    yield from self._measure(ahead)
                if self.rate(ahead) < self.rate(self._here) * (MARGIN if by > 0 else 1.0):
                    break
                self._here = ahead
            if self._here != began:
                return

    def _finalists(self) -> list[Point]:
        """Gives the fastest points so far, and the fastest with fewer and with more environments.

        Rates are flat near the best number of environments, where one unlucky figure ends a climb.
        """
        best = sorted(self.rates, key=lambda point: -self.rate(point))[:FINALISTS]
        beside = [self._space.moved(best[0], "envs", by) for by in (-1, 1)]
        return list(dict.fromkeys([*best, *(point for point in beside if point is not None)]))
