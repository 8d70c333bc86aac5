"""Experience stored once: chunks of T steps of one environment, in a ring, linked along their streams.

Knows no items, no priorities and no limits. The steps of a chunk lie side by side: a step has a *position*,
slot * T + t, used again when its slot is overwritten, and an *id*, serial * T + t, that never is.

A frame has a *row*. Row `position` is what was seen before that step; rows from `capacity` on are the side store, for
what no step begins with: the newest observation of a stream, and true last ones. It takes memory as it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.types import Arrays, prefixed, select

_STEP = ("action", "reward", "terminated", "truncated", "valid")
_PER_CHUNK = ("state.", "reward_before", "versions")
_VARYING = ("final", "episode_")

# Each array's dtype, its shape per step and environment, and the frames in a stack of it.
Layout = dict[str, tuple[str, tuple[int, ...], int]]
# Gives an uninitialised array; one that maps a file would put a table on disk.
Allocate = Callable[[tuple[int, ...], Any], np.ndarray]


def layout_of(arrays: Arrays) -> Layout:
    """Gives the layout of an unroll; arrays whose length varies are left out."""
    steps = len(arrays["reward"])

    def entry(name: str, array: np.ndarray) -> tuple[str, tuple[int, ...], int]:
        shape = array.shape[1 if name.startswith(_PER_CHUNK) else 2 :]
        return array.dtype.str, shape, len(array) - steps if name.startswith("observation.") else 1

    return {name: entry(name, array) for name, array in arrays.items() if not name.startswith(_VARYING)}


class _Side:
    """Which rows of the side store are free."""

    def __init__(self, start: int, rows: int) -> None:
        self._start = start
        self._free = np.empty(rows, np.int32)
        self._num_free = self.used = 0
        self.nbytes = self._free.nbytes

    @property
    def left(self) -> int:
        return len(self._free) - self.used + self._num_free

    def take(self, count: int) -> np.ndarray:
        old = min(count, self._num_free)
        fresh = np.arange(self.used, self.used + count - old, dtype=np.int32) + np.int32(self._start)
        self._num_free, self.used = self._num_free - old, self.used + len(fresh)
        return np.concatenate([self._free[self._num_free : self._num_free + old], fresh])

    def give(self, rows: np.ndarray) -> None:
        self._free[self._num_free : self._num_free + len(rows)] = rows
        self._num_free += len(rows)

    def state(self) -> dict[str, Any]:
        return {"used": self.used, "free": self._free[: self._num_free]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.used, self._num_free = state["used"], 0
        self.give(state["free"])


class Storage:
    """`slots` chunks of `unroll` steps, overwritten in order of arrival; `per_chunk` names what each keeps but once.

    Public arrays are indexed by position (`steps`), by slot (`chunks`, `tail`) and by row (`frames`). `side` bounds the
    rows of the side store; where they run out the oldest chunks go early. Without it there is one for every need.
    """

    def __init__(
        self,
        slots: int,
        unroll: int,
        layout: Layout,
        per_chunk: tuple[str, ...],
        side: int | None = None,
        allocate: Allocate = np.empty,
    ) -> None:
        self.slots, self.unroll, self.capacity = slots, unroll, slots * unroll
        self.stacks = {name: stack for name, (_, _, stack) in select("observation", layout).items()}
        # How many frames a stack reaches back.
        self._depth = max(self.stacks.values()) - 1
        # At worst every step has a last observation and every chunk a newest one. The last row stays blank.
        self.side = self.capacity + slots if side is None else side
        rows = self.capacity + self.side + 1
        self._blank = rows - 1
        self.steps = {name: allocate((self.capacity,), np.bool_) for name in ("first", "ended")}
        self.chunks = {"first_after": allocate((slots,), np.bool_)}
        self.frames: Arrays = {}
        for name, (dtype, shape, _) in layout.items():
            if name in _STEP or name.startswith("extras."):
                self.steps[name] = allocate((self.capacity, *shape), dtype)
            elif name.startswith("observation."):
                self.frames[name.removeprefix("observation.")] = allocate((rows, *shape), dtype)
            elif name.startswith(per_chunk):
                self.chunks[name] = allocate((slots, *([unroll] if name == "versions" else shape)), dtype)
        for frames in self.frames.values():
            frames[self._blank] = 0
        self._side = _Side(self.capacity, self.side)
        self.final_row = np.full(self.capacity, -1, np.int32)
        # The row of what was seen after a chunk: in the side store, or the next chunk's first.
        self.tail = np.full(slots, -1, np.int32)
        self._before = np.empty(rows if self._depth else 0, np.int32)
        self._before[self._blank :] = self._blank
        self._move_on(0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for steps, and of the side store what was ever used."""
        own = (*self.steps.values(), *self.chunks.values(), self.final_row, self.tail)
        per_row = sum(frames[:1].nbytes for frames in self.frames.values()) + 4 * bool(self._depth)
        return sum(array.nbytes for array in own) + (self.capacity + self._side.used) * per_row + 4 * self._side.used

    @property
    def reserved(self) -> int:
        """Bytes of all arrays, touched or not."""
        own = (*self.steps.values(), *self.chunks.values(), *self.frames.values())
        return sum(array.nbytes for array in (*own, self.final_row, self.tail, self._before)) + self._side.nbytes

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """Gives the ids of steps by their positions."""
        last = self.newest - 1
        ids: np.ndarray = last - (last - positions) % self.capacity
        return ids

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Says of which steps an item can start: they are here, decisions, and no frame of their stack is missing."""
        here: np.ndarray = self.steps["valid"].take(ids % self.capacity) & (ids >= self.oldest)
        return here

    def put(self, arrays: Arrays, after: np.ndarray | None) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Stores an unroll's columns in place of the oldest; gives the ids [B] of their first steps, and sets of
        positions where no item starts any more.

        `after` are the ids of the unroll before it in its stream: None, or no longer here, starts the stream anew.
        """
        first, envs = arrays["first"], arrays["reward"].shape[1]
        serials = self._next + np.arange(envs)
        slots = serials % self.slots
        gone = self._make_room(envs, envs + len(arrays.get("final_index", ())))
        linked = np.zeros(envs, np.bool_) if after is None else after >= self.oldest
        previous = np.zeros(0, np.int64) if after is None else after[linked] // self.unroll % self.slots
        self._write_steps(arrays, linked)
        tails = self._side.take(envs)
        for name, frames in self.frames.items():
            seen, k = arrays[f"observation.{name}"], self.stacks[name]
            self._write(self._by_slot(frames), seen[k - 1 : -1].swapaxes(0, 1))
            frames[tails] = seen[-1]
        positions = slots[:, None] * self.unroll + np.arange(self.unroll)
        self._put_finals(arrays, positions)
        self._side.give(self.tail[previous])
        self.tail[previous] = positions[linked, 0]
        self.tail[slots] = tails
        if self._depth:
            before = positions - 1
            before[:, 0] = self._blank
            before[linked, 0] = (previous + 1) * self.unroll - 1
            self._before[positions] = np.where(first[:-1].T, self._blank, before)
            self._before[tails] = np.where(first[-1], self._blank, positions[:, -1])
        return serials * self.unroll, gone

    def following(self, positions: np.ndarray) -> np.ndarray:
        """Gives the rows of what was seen after steps: the true last observation where there is one."""
        slot, t = np.divmod(positions, self.unroll)
        final = self.final_row.take(positions)
        return np.where(final >= 0, final, np.where(t == self.unroll - 1, self.tail.take(slot), positions + 1))

    def ahead(self, positions: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Gives the positions `steps` later in the same streams; shapes broadcast, and there must be such steps."""
        hops, t = np.divmod(positions % self.unroll + steps, self.unroll)
        slot = np.broadcast_to(positions // self.unroll, hops.shape)
        for hop in range(int(hops.max(initial=0))):
            slot = np.where(hops > hop, self.tail.take(slot) // self.unroll, slot)
        ahead: np.ndarray = slot * self.unroll + t
        return ahead

    def observe(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Gives observations by their rows, [*rows, ...]; stacks are built."""
        if self.stacks[name] > 1:
            rows = self._stack(rows, self.stacks[name])
        return self.frames[name].take(rows, axis=0)

    def film(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Gives single frames by rows [R, n] of successive times: [R+k-1, n, ...], the first k of them a stack."""
        earlier = self._stack(rows[0], self.stacks[name])[:, :-1].T
        return self.frames[name].take(np.concatenate([earlier, rows]), axis=0)

    def state(self) -> dict[str, Any]:
        """Gives what `restore` takes: views, to be written before anything else is stored."""
        return {"next": self._next, "oldest": self._oldest, "side": self._side.state(), "views": self._views()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._move_on(state["next"], state["oldest"])
        self._side.restore(state["side"])
        for name, view in self._views().items():
            view[:] = state["views"][name]

    def _views(self) -> Arrays:
        """The parts of all arrays that hold anything."""
        used, by_row = slice(self.capacity, self.capacity + self._side.used), prefixed("row", self.frames)
        by_position, by_slot = self.steps | {"final_row": self.final_row}, self.chunks | {"tail": self.tail}
        if self._depth:
            by_row["before"] = self._before
        views = {name: array[: self.filled] for name, array in (by_position | by_row).items()}
        views |= {name: array[: self.filled // self.unroll] for name, array in by_slot.items()}
        return views | prefixed("side", {name: array[used] for name, array in by_row.items()})

    def _move_on(self, serial: int, oldest: int) -> None:
        self._next, self._oldest = serial, oldest
        # Ids from `oldest` to `newest` - 1 are here, at positions below `filled`.
        self.oldest, self.newest = oldest * self.unroll, serial * self.unroll
        self.filled = min(self.newest, self.capacity)

    def _make_room(self, envs: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Evicts the oldest chunks until `envs` slots and `rows` of the side store are free; gives the positions of
        their steps, and of those after them that cannot start an item any more."""
        gone: list[np.ndarray] = []
        lost: list[np.ndarray] = []
        first, last = self._oldest, max(self._oldest, self._next + envs - self.slots)
        while not gone or self._side.left < rows:
            gone.append(np.arange(first, last) % self.slots)
            lost.append(self._evict(gone[-1]))
            first, last = last, min(last + envs, self._next)
        self._move_on(self._next + envs, first)
        positions = np.concatenate(gone)[:, None] * self.unroll + np.arange(self.unroll)
        return positions.ravel(), np.concatenate(lost)

    def _by_slot(self, array: np.ndarray) -> np.ndarray:
        return array[: self.capacity].reshape(self.slots, self.unroll, *array.shape[1:])

    def _write(self, store: np.ndarray, columns: np.ndarray) -> None:
        # Slices, not indices: the columns of an unroll lie in neighbouring slots.
        start = (self._next - len(columns)) % self.slots
        head = min(len(columns), self.slots - start)
        store[start : start + head] = columns[:head]
        store[: len(columns) - head] = columns[head:]

    def _write_steps(self, arrays: Arrays, linked: np.ndarray) -> None:
        first, valid = arrays["first"], arrays["valid"]
        if self._depth and not linked.all():
            # The stacks of these reach back to frames that are not here.
            valid = valid.copy()
            valid[: self._depth] &= linked | np.logical_or.accumulate(first[: self._depth])
        own = {"valid": valid, "first_after": first[-1]}
        own["ended"] = arrays["terminated"] | arrays["truncated"] | first[1:]
        for name, store in self.steps.items():
            source = own[name] if name in own else arrays[name][: self.unroll]
            self._write(self._by_slot(store), source.swapaxes(0, 1))
        for name, store in self.chunks.items():
            source = own[name] if name in own else arrays[name]
            self._write(store, np.broadcast_to(source, (len(linked), *store.shape[1:])))

    def _put_finals(self, arrays: Arrays, positions: np.ndarray) -> None:
        index = arrays.get("final_index")
        if index is None or not index.size:
            return
        t, b = np.divmod(index, len(positions))
        kept = np.flatnonzero(arrays["valid"][t, b])
        rows, ends = self._side.take(len(kept)), positions[b[kept], t[kept]]
        self.final_row[ends] = rows
        for name, final in select("final", arrays).items():
            self.frames[name][rows] = final[kept] if self.stacks[name] == 1 else final[kept, -1]
        if self._depth:
            self._before[rows] = ends

    def _stack(self, rows: np.ndarray, k: int) -> np.ndarray:
        """Gives the rows [..., k] of the frames in stacks, oldest first."""
        stack = np.empty((*rows.shape, k), np.int64)
        stack[..., -1] = rows
        for j in range(k - 1, 0, -1):
            stack[..., j - 1] = self._before.take(stack[..., j])
        return stack

    def _evict(self, slots: np.ndarray) -> np.ndarray:
        """Frees what chunks held in the side store; gives the positions of the steps after them that this leaves
        without all frames of their stacks."""
        finals, after = self._by_slot(self.final_row), self.tail[slots]
        rows = np.append(finals[slots], after)
        self._side.give(rows[rows >= self.capacity])
        finals[slots] = -1
        orphans: np.ndarray = (after[after < self.capacity, None] + np.arange(self._depth)).ravel()
        # Before anything new is written: an orphan may be overwritten too.
        self.steps["valid"][orphans] = False
        return orphans
