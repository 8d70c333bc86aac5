"""The ring table: stores unrolls and draws items from them, as the rate limiter allows.

A state machine without I/O or clock: requests go in, `poll` gives the answers that are due. Knows no algorithm; how
experience is kept, cut into items and chosen is `storage.py`'s, `items.py`'s and `selectors.py`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np

from common.config import Config, TableConfig
from common.errors import ConfigError, ProtocolError
from common.types import Arrays
from services.replay_server.ring.budget import Budget, Contents
from services.replay_server.ring.rate_limiter import RateLimiter
from services.replay_server.ring.requirements import least_capacity
from services.replay_server.ring.selectors import selector_of
from services.replay_server.ring.spoilt import without_spoilt
from services.replay_server.ring.storage import Layout, layout_of
from services.replay_server.unroll import Answer, Drawn, Stored, Unroll

_GOALS = {"observation.achieved_goal", "observation.desired_goal"}


@dataclass(slots=True)
class _Stream:
    """Where a stream stands: the ids [B] of its newest chunks, and what the table's items keep of it."""

    life: int
    number: int = 0
    ids: np.ndarray | None = None
    memory: Arrays = field(default_factory=dict)

    @property
    def newest(self) -> int:
        return -1 if self.ids is None else int(self.ids[-1])


class RingTable:
    """The newest `config.capacity` steps, in chunks of T = `unroll`, and their items; allocated at the first insert.

    With `config.max_bytes` as many of them as fit, which must be `least`; `capacity` says how many steps that are.
    `largest_insert` (steps) and `largest_sample` (items) bound one request where `samples_per_insert` couples both
    sides. `inserts` counts valid steps ever stored, `samples` items ever drawn, `stale` keys of priorities that came
    too late, `lost` steps that were inserted before this process and are not here, as far as streams that go on tell,
    `spoilt` steps that are left out since they are not finite, and `first_spoilt` which was the first.
    """

    def __init__(
        self,
        name: str,
        config: TableConfig,
        unroll: int,
        largest_insert: int,
        largest_sample: int,
        seed: int | tuple[int, int],
        least: int = 1,
    ) -> None:
        self._name, self._config, self._unroll, self._least = name, config, unroll, least
        self._limiter = RateLimiter(
            name,
            config.min_size,
            config.samples_per_insert,
            config.error_buffer,
            largest_insert=largest_insert,
            largest_sample=largest_sample,
        )
        self._random = np.random.default_rng(seed)
        self._selector, self._priorities = selector_of(config, 0)
        self._budget: Budget | None = None
        self._contents: Contents | None = None
        self._layout: Layout = {}
        self._layout_of = ""
        self._streams: dict[str, _Stream] = {}
        self._parked: deque[tuple[Unroll, Any]] = deque()
        self._wanted: deque[tuple[int, Any]] = deque()
        self._updates: deque[Arrays] = deque()
        self._frozen = False
        self._held: tuple[str, ...] = ()
        self._polled = 0.0
        self.blocked_seconds = {"insert": 0.0, "sample": 0.0}
        self.discarded = self.stale = self.lost = self.spoilt = 0
        self.first_spoilt = ""

    @property
    def capacity(self) -> int:
        """Steps that are kept, in whole chunks; 0 before the first unroll says what a step is."""
        return self._contents.storage.capacity if self._contents else 0

    @property
    def size(self) -> int:
        """Items that can be drawn."""
        return self._selector.size

    @property
    def mass(self) -> float:
        """The sum of priority ** alpha over the items; their number where they have no priorities."""
        return self._selector.mass

    @property
    def nbytes(self) -> int:
        stored = self._selector.nbytes + sum(unroll.nbytes for unroll, _ in self._parked)
        if self._contents is not None:
            stored += self._contents.storage.nbytes + sum(
                table.nbytes for table in self._contents.items.tables.values()
            )
        return stored

    @property
    def parked(self) -> int:
        return len(self._parked)

    @property
    def inserts(self) -> int:
        return self._limiter.inserts

    @property
    def ahead(self) -> float:
        """How many items draws have run ahead of inserts, as the limiter counts."""
        return self._limiter.ahead

    @property
    def samples(self) -> int:
        return self._limiter.samples

    def join(self, slot: str, life: int) -> None:
        """Does nothing: a ring waits for no group."""

    def insert(self, unroll: Unroll, token: Any) -> bool:
        """Takes an unroll that `check` let through and gives False: it is stored when `poll` answers Stored."""
        self._parked.append((unroll, token))
        return False

    def sample(self, n: int, version: int, token: Any) -> None:
        """Asks for `n` items; a ring has no policy lag, so `version` does not matter to it.

        Drawn.arrays: what `items.py` gathers for the kind of item, and keys [n] int64 and probabilities [n] float64.
        """
        if n < 1:
            raise ProtocolError(f"a Sample of {n} items", "ask for at least 1")
        self._limiter.check_sample(n)
        self._wanted.append((n, token))

    def update(self, arrays: Arrays, stale: bool = False) -> None:
        """Sets, at the next `poll`, `priorities` [n] of the items that `keys` [n] int64 name, where they still are;
        `stale` says that none is."""
        keys, priorities = arrays.get("keys", np.zeros(0)), arrays.get("priorities", np.zeros(0))
        if self._config.kind != "prioritized":
            raise ProtocolError(f"table {self._name!r} has no priorities", "send none to this table")
        if keys.dtype != np.int64 or priorities.dtype.kind != "f" or keys.ndim != 1 or keys.shape != priorities.shape:
            raise ProtocolError("priorities without keys", "send keys [n] int64 and as many priorities")
        if not np.isfinite(priorities).all() or priorities.min(initial=0.0) < 0:
            raise ProtocolError("priorities that are not all finite and at least 0", "send absolute errors")
        if stale:
            self.stale += len(keys)
        else:
            self._updates.append(arrays)

    def learner_gone(self) -> None:
        """Drops the Samples that wait: nobody is there to take their answers."""
        self._wanted.clear()

    def finish(self) -> list[Answer]:
        """Gives no answer: what is stored was answered then, and what still waits is not stored."""
        self._parked.clear()
        return []

    def poll(self, now: float) -> list[Answer]:
        """Gives the answers due at `now` (seconds on any clock)."""
        for side in self._held:
            self.blocked_seconds[side] += now - self._polled
        answers: list[Answer] = []
        if not self._frozen:
            while self._updates:
                self._apply(self._updates.popleft())
            while answer := self._store_next() or self._draw_next():
                answers.append(answer)
        self._polled = now
        self._held = tuple(side for side, queue in (("insert", self._parked), ("sample", self._wanted)) if queue)
        return answers

    def reasons(self) -> Iterable[tuple[Any, str]]:
        """Gives the tokens of waiting requests, each with what it waits for."""
        frozen = "the table is being written to its checkpoint" if self._frozen else ""
        for n, token in self._wanted:
            limited = "no item can be drawn" if self._limiter.may_sample(n) else self._limiter.why_sample_waits()
            yield token, frozen or limited
        for _, token in self._parked:
            yield token, frozen or self._limiter.why_insert_waits()

    def check(self, unroll: Unroll) -> None:
        """Raises ProtocolError if its arrays are unlike the first unroll's, ConfigError if it does not fit."""
        steps, columns = unroll.arrays["reward"].shape
        index = unroll.arrays.get("final_index", ())
        if steps != self._unroll:
            raise ProtocolError(
                f"{unroll.slot} sends unrolls of {steps} steps, table {self._name!r} has chunks of {self._unroll}",
                "set the same rollout.unroll for env-servers and replay-server",
            )
        if len(np.unique(index)) != len(index):
            raise ProtocolError(f"{unroll.slot} sends two last observations of one step", "list each step once")
        self._limiter.check_insert(steps * columns)
        layout = layout_of(unroll.arrays)
        stack = max((stack for _, _, stack in layout.values()), default=1)
        if stack > steps + 1:
            raise ConfigError(f"rollout.unroll={steps} is too short for stacks of {stack}", f"set it to {stack - 1}")
        if self._config.her.k and not layout.keys() >= _GOALS:
            raise ProtocolError(f"{unroll.slot} sends no goals to table {self._name!r}", "set its her.k to 0")
        if self._config.her.k and len(shapes := {layout[name][1] for name in _GOALS}) > 1:
            text = f"{unroll.slot} sends goals of unlike shapes to table {self._name!r}: {sorted(shapes)}"
            raise ProtocolError(text, "give achieved_goal and desired_goal one shape, or set its her.k to 0")
        with self._memory():
            budget = self._budget or Budget(self._config, layout, steps)
            budget.check(self._name, columns, self._least)
            if self._budget is None:
                self._allocate(budget)
                self._layout, self._layout_of = layout, unroll.slot
        for name in sorted(layout.keys() | self._layout.keys()):
            if layout.get(name) != self._layout.get(name):
                raise ProtocolError(
                    f"{unroll.slot} sends {name} as {_show(layout.get(name))}, table {self._name!r} holds it as "
                    f"{_show(self._layout.get(name))} from {self._layout_of}",
                    "run the same environment, network and version everywhere",
                )

    def freeze(self) -> dict[str, Any]:
        """Gives all that `restore` takes; it stays as it is until `thaw`."""
        self._frozen = True
        storage, items = self._contents or (None, None)
        return {
            "settings": [self._config.model_dump(mode="json"), self._unroll],
            "layout": [self._layout_of, self._layout],
            "random": self._random.bit_generator.state,
            "counts": [self.inserts, self.samples, self.stale, self.lost],
            "streams": {slot: [s.life, s.number, s.ids, s.memory] for slot, s in self._streams.items()},
            "selector": self._selector.state(),
            "storage": storage and storage.state(),
            "items": items and items.tables,
        }

    def thaw(self) -> None:
        """Lets `poll` go on."""
        self._frozen = False

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Puts an empty table where `freeze` saw one; False, and nothing done, if that had other settings."""
        if state["settings"] != [self._config.model_dump(mode="json"), self._unroll]:
            return False
        self._layout_of, layout = state["layout"]
        self._layout = {name: (dtype, tuple(shape), stack) for name, (dtype, shape, stack) in layout.items()}
        self._random.bit_generator.state = state["random"]
        self._limiter.inserts, self._limiter.samples, self.stale, self.lost = state["counts"]
        self._streams = {
            slot: _Stream(life, number, ids, dict(memory))
            for slot, (life, number, ids, memory) in state["streams"].items()
        }
        if self._layout:
            with self._memory():
                storage, items = self._allocate(Budget(self._config, self._layout, self._unroll))
            self._selector.restore(state["selector"])
            storage.restore(state["storage"])
            # One array after another: a state that is read from a file holds none of them.
            for name, table in items.tables.items():
                table[:] = state["items"][name]
        return True

    def _allocate(self, budget: Budget) -> Contents:
        contents = budget.contents()
        self._selector, self._priorities = selector_of(self._config, contents.storage.capacity)
        self._budget, self._contents = budget, contents
        return contents

    @contextmanager
    def _memory(self) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            key, config = f"replay.tables.{self._name}", self._config
            raise ConfigError(
                f"{key}.capacity={config.capacity} with {key}.max_bytes={config.max_bytes} does not fit: {error}",
                "set one of them to what this machine has room for",
            ) from None

    def _apply(self, arrays: Arrays) -> None:
        keys, updated = arrays["keys"], 0
        if self._contents is not None and self._priorities is not None:
            storage = self._contents.storage
            here = (keys >= storage.oldest) & (keys < storage.newest)
            updated = self._priorities.update(keys[here] % storage.capacity, arrays["priorities"][here])
        self.stale += len(keys) - updated

    def _store_next(self) -> Stored | None:
        if not self._parked:
            return None
        unroll, token = self._parked[0]
        stream = self._streams.get(unroll.slot)
        if stream is None or stream.life != unroll.life or unroll.number > stream.number:
            n = int(np.count_nonzero(unroll.arrays["valid"]))
            # Until an item is complete no draw can make room.
            if self.size and not self._limiter.may_insert(n):
                return None
            self._limiter.inserted(self._store(unroll, stream))
        self._parked.popleft()
        return Stored(token, 0)

    def _store(self, unroll: Unroll, stream: _Stream | None) -> int:
        """Puts an unroll into the ring; gives the steps of it that items may hold."""
        assert self._contents is not None
        storage, items = self._contents
        arrays, spoilt = without_spoilt(unroll.arrays)
        self._count_spoilt(unroll, spoilt)
        steps, columns = unroll.arrays["reward"].shape
        if stream is None or stream.life != unroll.life:
            stream = _Stream(unroll.life)
        missed = unroll.number - stream.number - 1
        # Once anything was evicted, a stream that is not known may have been forgotten: it says nothing.
        if unroll.slot in self._streams or not storage.oldest:
            self.lost += max(0, missed) * steps * columns
        # Of a first step that is left out the unroll before knows nothing: no item goes on from there to here.
        if missed or spoilt[0].any() or stream.ids is None or len(stream.ids) != columns:
            stream = _Stream(unroll.life)
        stream.number = unroll.number
        stream.ids, overwritten = storage.put(arrays, stream.ids)
        for positions in overwritten:
            self._selector.clear(positions)
        self._selector.add(*items.complete(stream.ids, unroll.number, stream.memory))
        self._remember(unroll.slot, stream, storage.oldest)
        return int(np.count_nonzero(arrays["valid"]))

    def _count_spoilt(self, unroll: Unroll, spoilt: np.ndarray) -> None:
        if spoilt.any():
            t, env = (int(x) for x in np.argwhere(spoilt)[0])
            where = f"step {t} of environment {unroll.first_env + env} in unroll {unroll.number} of {unroll.slot}"
            self.first_spoilt = self.first_spoilt or where
            self.spoilt += int(np.count_nonzero(spoilt & unroll.arrays["valid"]))

    def _remember(self, slot: str, stream: _Stream, oldest: int) -> None:
        """Puts a stream behind the others, and forgets those of which nothing is left: they come and go."""
        self._streams.pop(slot, None)
        self._streams[slot] = stream
        # They stand in the order of their newest chunks, which is that of eviction.
        for gone in [*takewhile(lambda slot: self._streams[slot].newest < oldest, self._streams)]:
            del self._streams[gone]

    def _draw_next(self) -> Drawn | None:
        if not self._wanted or self._contents is None or not self.size:
            return None
        n, token = self._wanted[0]
        if not self._limiter.may_sample(n):
            return None
        storage, items = self._contents
        positions, probabilities = self._selector.draw(n, storage.filled, self._random)
        arrays = items.gather(positions, self._random)
        # Last: a draw that fails fails again at the next `poll`, instead of leaving its asker to wait for good.
        self._wanted.popleft()
        self._limiter.sampled(n)
        return Drawn(token, arrays=arrays | {"keys": storage.ids(positions), "probabilities": probabilities})


def _show(layout: tuple[str, tuple[int, ...], int] | None) -> str:
    return "nothing" if layout is None else f"{layout[0]} {layout[1]}"


def make_ring(name: str, config: Config, shard: int) -> RingTable:
    """Gives the ring that `replay.tables.<name>` describes; raises ConfigError if its items could never be made."""
    table, learner = config.replay.tables[name], config.learner
    each = learner.replayed.per_online * config.env.envs if name == learner.replayed.table else learner.per_request
    largest = learner.batch * each
    least = least_capacity(f"replay.tables.{name}", table, config)
    return RingTable(
        name,
        table,
        unroll=config.rollout.unroll,
        largest_insert=config.rollout.unroll * config.env.envs,
        largest_sample=largest,
        seed=(config.run.seed, shard),
        least=max(least, largest),
    )
