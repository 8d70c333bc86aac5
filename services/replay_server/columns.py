"""The storage of a ring: transitions cut from environment columns when they are drawn. Knows no requests and no limits.

It copies what it keeps, so no received message stays alive, and never hands out a step that is not valid.
"""

from __future__ import annotations

import numpy as np

from common.types import Arrays, prefixed, select

_STEP = ("action", "reward", "terminated", "truncated")


class _Finals:
    """True last observations, row by row. Free rows are used again: memory follows the most ever held at once."""

    def __init__(self, observation: Arrays, limit: int) -> None:
        self._limit = limit
        self._rows = {name: np.empty((0, *array.shape[2:]), array.dtype) for name, array in observation.items()}
        self._free = np.empty(0, np.int32)
        self._num_free = 0

    @property
    def nbytes(self) -> int:
        return self._free.nbytes + sum(rows.nbytes for rows in self._rows.values())

    def put(self, observations: Arrays, count: int) -> np.ndarray:
        """Copies `count` observations of each name, and gives their rows [count] int32."""
        if count > self._num_free:
            self._grow(len(self._free) - self._num_free + count)
        self._num_free -= count
        taken = self._free[self._num_free : self._num_free + count].copy()
        for name, rows in self._rows.items():
            rows[taken] = observations[name]
        return taken

    def release(self, rows: np.ndarray) -> None:
        self._free[self._num_free : self._num_free + len(rows)] = rows
        self._num_free += len(rows)

    def get(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._rows[name].take(rows, axis=0)

    def _grow(self, needed: int) -> None:
        old = len(self._free)
        new = max(needed, min(2 * old, self._limit))
        for name, rows in self._rows.items():
            grown = np.empty((new, *rows.shape[1:]), rows.dtype)
            grown[:old] = rows
            self._rows[name] = grown
        free = np.empty(new, np.int32)
        free[: self._num_free] = self._free[: self._num_free]
        free[self._num_free : self._num_free + new - old] = np.arange(old, new)
        self._free, self._num_free = free, self._num_free + new - old


class Columns:
    """`slots` columns of T steps each, overwritten in order of arrival, and the index of their valid steps.

    The index is a queue of flat positions slot * T + t: columns leave in the order they came, and so do their steps.
    """

    def __init__(self, slots: int, unroll: int, arrays: Arrays) -> None:
        self._slots, self._unroll = slots, unroll
        observation = select("observation", arrays)
        names = [*_STEP, *(name for name in arrays if name.startswith("extras."))]
        self._steps = {name: _ring(slots, unroll, arrays[name]) for name in names}
        self._observation = {name: _ring(slots, unroll + 1, array) for name, array in observation.items()}
        self._finals = _Finals(observation, slots * unroll)
        self._final_row = np.full((slots, unroll), -1, np.int32)
        self._counts = np.zeros(slots, np.int64)
        self._generation = np.full(slots, -1, np.int64)
        self._queue = np.empty(slots * unroll, np.int64)
        self._oldest = 0
        self._next = 0
        self.size = 0

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def nbytes(self) -> int:
        own = (self._final_row, self._counts, self._generation, self._queue)
        arrays = (*self._steps.values(), *self._observation.values(), *own)
        return self._finals.nbytes + sum(array.nbytes for array in arrays)

    def put(self, arrays: Arrays) -> None:
        """Stores an unroll's columns in place of the oldest ones; a column without a valid step takes no slot."""
        valid = arrays["valid"].T
        columns = np.flatnonzero(valid.any(axis=1))
        slots = (self._next + np.arange(len(columns))) % self._slots
        self._evict(slots)
        stores = self._steps | prefixed("observation", self._observation)
        for name, store in stores.items():
            self._write(store, arrays[name].swapaxes(0, 1), columns)
        self._put_finals(arrays, columns, slots)
        column, t = np.nonzero(valid[columns])
        places = (self._oldest + self.size + np.arange(len(column))) % len(self._queue)
        self._queue[places] = slots[column] * self._unroll + t
        self._counts[slots] = np.bincount(column, minlength=len(columns))
        self._generation[slots] += 1
        self._next = (self._next + len(columns)) % self._slots
        self.size += len(column)

    def draw(self, n: int, random: np.random.Generator) -> Arrays:
        """Gives `n` transitions, uniform over the valid ones and with replacement, in arrays [n, ...].

        observation.<name> and next_observation.<name> (the true last one where an episode ended), action, reward,
        terminated, truncated and extras.<name> as stored; keys int64, unique over the life of the ring, so that a key
        whose slot was overwritten can be told; probabilities float64.
        """
        picks = random.integers(self.size, size=n)
        flat = self._queue[(self._oldest + picks) % len(self._queue)]
        slot, t = np.divmod(flat, self._unroll)
        row = slot * (self._unroll + 1) + t
        final_row = self._final_row.ravel()[flat]
        ended = np.flatnonzero(final_row >= 0)
        drawn = {name: _flat(store).take(flat, axis=0) for name, store in self._steps.items()}
        for name, store in self._observation.items():
            following = _flat(store).take(row + 1, axis=0)
            following[ended] = self._finals.get(name, final_row[ended])
            drawn[f"observation.{name}"] = _flat(store).take(row, axis=0)
            drawn[f"next_observation.{name}"] = following
        drawn["keys"] = self._generation[slot] * len(self._queue) + flat
        drawn["probabilities"] = np.full(n, 1.0 / self.size)
        return drawn

    def _evict(self, slots: np.ndarray) -> None:
        gone = int(self._counts[slots].sum())
        self._oldest = (self._oldest + gone) % len(self._queue)
        self.size -= gone
        rows = self._final_row[slots]
        self._finals.release(rows[rows >= 0])
        self._final_row[slots] = -1

    def _write(self, store: np.ndarray, source: np.ndarray, columns: np.ndarray) -> None:
        # Slices, not indices: picking columns by index would copy the whole unroll once more.
        chosen = source if len(columns) == len(source) else source[columns]
        first = min(len(columns), self._slots - self._next)
        store[self._next : self._next + first] = chosen[:first]
        store[: len(columns) - first] = chosen[first:]

    def _put_finals(self, arrays: Arrays, columns: np.ndarray, slots: np.ndarray) -> None:
        index = arrays.get("final_index")
        if index is None or not index.size:
            return
        valid = arrays["valid"]
        t, b = np.divmod(index, valid.shape[1])
        kept = np.flatnonzero(valid[t, b])
        slot_of = np.full(valid.shape[1], -1)
        slot_of[columns] = slots
        rows = self._finals.put({name: array[kept] for name, array in select("final", arrays).items()}, len(kept))
        self._final_row[slot_of[b[kept]], t[kept]] = rows


def _ring(slots: int, steps: int, array: np.ndarray) -> np.ndarray:
    return np.empty((slots, steps, *array.shape[2:]), array.dtype)


def _flat(store: np.ndarray) -> np.ndarray:
    return store.reshape(store.shape[0] * store.shape[1], *store.shape[2:])
