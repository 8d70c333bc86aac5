"""Whether draws follow priorities that change meanwhile, memory stays flat, and no item crosses a boundary.

Items of three steps go into a prioritized ring of which nothing is known here but its messages: what it should hold is
kept beside it. Streams die at random; priorities come a few inserts after the draw they belong to, some too late.

    python -m benchmarks.draws [--items 10000000]
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import psutil

from common.config import TableConfig
from common.types import Arrays
from services.replay_server.ring.table import RingTable
from services.replay_server.unroll import Drawn, Unroll

T, ENVS, STREAMS, N_STEP, DISCOUNT, ALPHA = 20, 10, 8, 3, 0.5, 0.6
BATCH = T * ENVS
# Priorities take these values, so that draws can be counted by priority. New items enter at the largest so far.
LEVELS = np.arange(1, 21) / 4
DEATH, END, LATE = 0.02, 0.05, 3


@dataclass(slots=True)
class Stream:
    """One life of a stream: where its episodes stand, and the ids of steps whose items are not complete."""

    life: int
    number: int = 0
    episode: np.ndarray = field(default_factory=lambda: np.zeros(ENVS, np.int32))
    step: np.ndarray = field(default_factory=lambda: np.zeros(ENVS, np.int32))
    open: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def unroll(self, slot: str, random: np.random.Generator) -> tuple[Unroll, np.ndarray]:
        """Gives the next unroll, which says in its observations where each step belongs, and its ends [T, B]."""
        ended = random.random((T, ENVS)) < END
        terminated = ended & (random.random((T, ENVS)) < 0.5)
        first = np.concatenate([(self.step == 0)[None], ended])
        times, begun = np.arange(T + 1)[:, None], np.concatenate([np.zeros((1, ENVS), np.bool_), ended])
        since = np.maximum.accumulate(np.where(begun, times, -1), axis=0)
        step = np.where(since < 0, self.step + times, times - since).astype(np.int32)
        episode = self.episode + begun.cumsum(axis=0, dtype=np.int32)
        seen = np.empty((T + 1, ENVS, 4), np.int32)
        seen[..., 0], seen[..., 1], seen[..., 2], seen[..., 3] = self.life, np.arange(ENVS), episode, step
        t, b = np.nonzero(ended)
        self.number, self.episode, self.step = self.number + 1, episode[-1], step[-1]
        arrays = {
            "observation.obs": seen,
            "first": first,
            "action": np.zeros((T, ENVS), np.int64),
            "reward": np.ones((T, ENVS), np.float32),
            "terminated": terminated,
            "truncated": ended & ~terminated,
            "valid": np.ones((T, ENVS), np.bool_),
            "final_index": (t * ENVS + b).astype(np.int32),
            "final.obs": seen[t, b] + np.array([0, 0, 0, 1], np.int32),
        }
        return Unroll(slot, self.life, self.number, 0, arrays), ended


class Ledger:
    """What the table should hold and how often each place and each level should have been drawn by now."""

    def __init__(self, capacity: int) -> None:
        self._weights = LEVELS**ALPHA
        # By place: the level of the item there (-1: none), and the draws per unit of mass up to when it changed.
        self.level, self._since = np.full(capacity, -1), np.zeros(capacity)
        self._per_mass = 0.0
        self._items = np.zeros(len(LEVELS), np.int64)
        self._largest = 3
        self.by_place, self.expected_by_place = np.zeros((2, capacity))
        self.by_level, self.expected_by_level = np.zeros((2, len(LEVELS)))

    def change(self, places: np.ndarray, level: np.ndarray | int | None = None) -> None:
        """Says that there are items of these levels at places, which come once each; None: the largest so far."""
        self.settle(places)
        before = self.level[places]
        self._items -= np.bincount(before[before >= 0], minlength=len(LEVELS))
        self.level[places] = self._largest if level is None else level
        after = self.level[places]
        self._items += np.bincount(after[after >= 0], minlength=len(LEVELS))

    def update(self, places: np.ndarray, levels: np.ndarray) -> int:
        """Sets new levels where there are items, of a place that comes twice the last; gives for how many not."""
        here = self.level[places] >= 0
        if here.any():
            self._largest = max(self._largest, int(levels[here].max()))
            last = dict(zip(places[here].tolist(), levels[here].tolist(), strict=True))
            self.change(np.array([*last]), np.array([*last.values()]))
        return len(places) - int(here.sum())

    def drawn(self, places: np.ndarray) -> None:
        mass = float(self._items @ self._weights)
        self._per_mass += len(places) / mass
        self.expected_by_level += len(places) * self._items * self._weights / mass
        np.add.at(self.by_place, places, 1)
        self.by_level += np.bincount(self.level[places], minlength=len(LEVELS))

    def settle(self, places: np.ndarray) -> None:
        """Brings what was expected of these places up to now."""
        level = self.level[places]
        due = np.where(level >= 0, self._weights[level], 0.0) * (self._per_mass - self._since[places])
        self.expected_by_place[places] += due
        self._since[places] = self._per_mass

    @property
    def size(self) -> int:
        return int(self._items.sum())


@dataclass(frozen=True, slots=True)
class Result:
    """`statistics` are (what was counted, chi-square, G, degrees of freedom)."""

    inserted: int
    drawn: int
    stale: int
    lives: int
    crossed: int
    statistics: tuple[tuple[str, float, float, int], ...]
    resident: tuple[int, int]
    seconds: float


def tail(statistic: float, freedom: int) -> float:
    """Gives the chance of a chi-square this large or larger (Wilson and Hilferty, 1931)."""
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def crossings(arrays: Arrays) -> int:
    """Counts drawn items that are not what one episode of one environment of one life of a stream went through."""
    seen, after = arrays["observation.obs"], arrays["next_observation.obs"]
    steps = after[:, 3] - seen[:, 3]
    right = (seen[:, :3] == after[:, :3]).all(axis=1) & (steps >= 1) & (steps <= N_STEP)
    right &= (arrays["discount"] == 0) | (arrays["discount"] == DISCOUNT**steps)
    right &= arrays["reward"] == 2 * (1 - DISCOUNT**steps)
    return int(np.count_nonzero(~right))


def measure(items: int, capacity: int, seed: int = 0) -> Result:
    """Inserts and draws `items`, after a ring of `capacity` steps is full, with updates of priorities in between."""
    random, slots = np.random.default_rng(seed), capacity // T
    config = TableConfig(kind="prioritized", capacity=capacity, n_step=N_STEP, discount=DISCOUNT, alpha=ALPHA)
    table, ledger = RingTable("draws", config, T, largest_insert=1, largest_sample=1, seed=seed), Ledger(capacity)
    streams = [Stream(life + 1) for life in range(STREAMS)]
    under_way: deque[tuple[np.ndarray, np.ndarray]] = deque()
    chunks, lives, crossed, stale, began = 0, STREAMS, 0, 0, time.process_time()
    first, turns = 0, -(-items // BATCH) + slots // ENVS
    for turn in range(turns):
        which = int(random.integers(STREAMS))
        if random.random() < DEATH:
            lives += 1
            streams[which] = Stream(lives)
        ids = (chunks + np.arange(ENVS)) * T + np.arange(T)[:, None]
        chunks += ENVS
        insert(table, ledger, streams[which], f"env-{which}/0", ids, random)
        oldest = (chunks - slots) * T
        if oldest < 0:
            continue
        if turn == max(slots // ENVS, turns // 10):
            first = resident()
        drawn = draw(table)
        crossed += crossings(drawn) + int(np.count_nonzero(drawn["keys"] < oldest))
        ledger.drawn(drawn["keys"] % capacity)
        under_way.append((drawn["keys"], random.integers(len(LEVELS), size=BATCH)))
        if len(under_way) > LATE:
            keys, levels = under_way.popleft()
            table.update({"keys": keys, "priorities": LEVELS[levels]})
            table.poll(0.0)
            here = keys >= oldest
            stale += int(np.count_nonzero(~here)) + ledger.update(keys[here] % capacity, levels[here])
    last = resident()
    if (table.size, table.stale) != (ledger.size, stale):
        raise RuntimeError(f"the table holds {table.size} items, {table.stale} stale: {ledger.size}, {stale} expected")
    ledger.settle(np.arange(capacity))
    counted = (
        ("place", ledger.by_place, ledger.expected_by_place),
        ("priority", ledger.by_level, ledger.expected_by_level),
    )
    statistics = tuple((name, *distances(*pair), len(pair[0]) - 1) for name, *pair in counted)
    return Result(
        table.inserts,
        table.samples,
        table.stale,
        lives,
        crossed,
        statistics,
        (first, last),
        time.process_time() - began,
    )


def insert(
    table: RingTable, ledger: Ledger, stream: Stream, slot: str, ids: np.ndarray, random: np.random.Generator
) -> None:
    """Puts a stream's next unroll, which gets `ids` [T, B], into table and ledger."""
    unroll, ended = stream.unroll(slot, random)
    table.check(unroll)
    table.insert(unroll, None)
    table.poll(0.0)
    capacity, oldest = len(ledger.level), int(ids.max()) + 1 - len(ledger.level)
    ledger.change((ids % capacity).ravel(), -1)
    # Complete: three steps on in this unroll, or the episode ends before that; the others with the stream's next one.
    whole = np.arange(T)[:, None] + N_STEP <= np.full(ENVS, T)
    for ahead in range(N_STEP - 1):
        whole[: T - ahead] |= ended[ahead:]
    done = np.append(ids[whole], stream.open[stream.open >= oldest])
    ledger.change(done % capacity)
    stream.open = ids[~whole]


def draw(table: RingTable) -> Arrays:
    table.sample(BATCH, 0, None)
    (answer,) = table.poll(0.0)
    assert isinstance(answer, Drawn)
    assert answer.arrays is not None
    return answer.arrays


def distances(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Gives Pearson's chi-square and the G statistic of counts."""
    some = counts > 0
    g = 2 * (counts[some] * np.log(counts[some] / expected[some])).sum()
    return float(((counts - expected) ** 2 / expected).sum()), float(g)


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def markdown(found: Result) -> str:
    lines = [
        "| draws counted by | chi-square | G | degrees of freedom | p of the chi-square |",
        "|---|---|---|---|---|",
    ]
    for name, chi, g, freedom in found.statistics:
        lines.append(f"| {name} | {chi:,.1f} | {g:,.1f} | {freedom:,} | {tail(chi, freedom):.2f} |")
    first, last = (size / 2**20 for size in found.resident)
    said = (
        f"{found.inserted:,} steps inserted by {found.lives:,} lives of {STREAMS} streams, {found.drawn:,} items drawn "
        f"in {found.seconds:.0f} s of one core; {found.stale:,} priorities came too late and were ignored. "
        f"{found.crossed} items crossed an episode's end, a death or an overwritten step; resident memory was "
        f"{first:.1f} MiB after warm-up and {last:.1f} MiB at the end."
    )
    return "\n".join([said, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--capacity", type=int, default=100_000)
    arguments = parser.parse_args()
    print(markdown(measure(arguments.items, arguments.capacity)))


if __name__ == "__main__":
    main()
