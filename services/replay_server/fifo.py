"""The FIFO table: each unroll is handed out once, in order, and never older than the policy lag allows.

A state machine without I/O or clock: requests go in, `poll` gives the answers that are due.

With `max_policy_lag` 0 it is the meeting point of synchronous training: a batch is one unroll of each live group, and
Inserts are answered by the Sample after the one that took them, whose version their streams must act with next. So an
unroll stays with its env-server until it has been trained on, and a lost replay-server loses nothing.
Otherwise an Insert is answered when it is stored, which is when there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from common.errors import ProtocolError
from services.replay_server.unroll import Answer, Drawn, Stored, Unroll


@dataclass(slots=True)
class _Item:
    unroll: Unroll
    token: Any
    oldest: int


@dataclass(slots=True)
class _Wanted:
    token: Any
    n: int
    version: int


@dataclass(slots=True)
class _Group:
    life: int
    live: bool = True


class FifoTable:
    """Unrolls in order of arrival, at most `capacity` of them; a group later than `group_deadline_s` is left out."""

    def __init__(self, capacity: int, max_policy_lag: int, group_deadline_s: float) -> None:
        self._capacity = capacity
        self._max_lag = max_policy_lag
        self._deadline_s = group_deadline_s
        self._queue: deque[_Item] = deque()
        self._parked: deque[_Item] = deque()
        self._kept: list[_Item] = []
        self._wanted: _Wanted | None = None
        self._groups: dict[str, _Group] = {}
        self._answers: list[Answer] = []
        self._ready_since: float | None = None
        self._polled = 0.0
        self._held: tuple[str, ...] = ()
        self._unroll = 0
        self.blocked_seconds = {"insert": 0.0, "sample": 0.0}
        self.inserts = self.samples = self.discarded = 0

    @property
    def synchronous(self) -> bool:
        return self._max_lag == 0

    @property
    def size(self) -> int:
        return len(self._queue)

    @property
    def mass(self) -> float:
        return float(len(self._queue))

    @property
    def nbytes(self) -> int:
        return sum(item.unroll.nbytes for items in (self._queue, self._parked, self._kept) for item in items)

    @property
    def parked(self) -> int:
        return len(self._parked)

    def join(self, slot: str, life: int) -> None:
        """Says that a group is there, before its first unroll; a new life of a slot takes the old one's place."""
        self._groups[slot] = _Group(life)

    def check(self, unroll: Unroll) -> None:
        """Raises ProtocolError if the unroll's length is not the table's, which its first unroll set."""
        steps = len(unroll.arrays["reward"])
        if steps != (self._unroll or steps):
            text = f"{unroll.slot} sends unrolls of {steps} steps, the table holds unrolls of {self._unroll}"
            raise ProtocolError(text, "set the same rollout.unroll for all env-servers")

    def insert(self, unroll: Unroll, token: Any) -> bool:
        """Takes an unroll; False says that it is not stored yet, for want of room."""
        # Not by `check`: another table of the same Insert may refuse it.
        self._unroll = len(unroll.arrays["reward"])
        item = _Item(unroll, token, int(unroll.arrays["versions"].min()))
        if not self.synchronous and len(self._queue) >= self._capacity:
            self._parked.append(item)
            return False
        self._store(item)
        return True

    def sample(self, n: int, version: int, token: Any) -> None:
        """Asks for `n` unrolls (at lag 0: one of each live group) for `version` to train on; acknowledges the last."""
        if not self.synchronous and not 1 <= n <= self._capacity:
            raise ProtocolError(f"a Sample of {n} unrolls", f"ask for 1 to {self._capacity}: more never fit the table")
        if self.synchronous:
            self._answers += [Stored(item.token, version) for item in self._kept]
        self._kept = []
        self._wanted = _Wanted(token, n, version)
        self._ready_since = None

    def learner_gone(self) -> None:
        """Puts what the learner had not acknowledged back to the front: a new learner's life begins."""
        self._queue.extendleft(reversed(self._kept))
        self._kept = []
        self._wanted = None

    def finish(self) -> list[Answer]:
        """Gives the answers owed to Inserts that are stored; those still waiting for room get none."""
        answers, self._answers = self._answers, []
        if self.synchronous:
            answers += [Stored(item.token, 0) for item in (*self._kept, *self._queue)]
        self._kept.clear()
        self._queue.clear()
        return answers

    def poll(self, now: float) -> list[Answer]:
        """Gives the answers due at `now` (seconds on any clock)."""
        for side in self._held:
            self.blocked_seconds[side] += now - self._polled
        self._polled = now
        if self._wanted is not None:
            self._discard_stale(self._wanted.version)
            while self._admit():
                self._discard_stale(self._wanted.version)
            taken, missing = self._take_synchronous(now) if self.synchronous else (self._take(self._wanted.n), ())
            if taken:
                self.samples += len(taken)
                self._kept = taken
                self._answers.append(Drawn(self._wanted.token, tuple(i.unroll for i in taken), missing=missing))
                self._wanted = None
        self._admit()
        self._held = tuple(side for side, held in (("sample", self._wanted), ("insert", self._parked)) if held)
        answers, self._answers = self._answers, []
        return answers

    def reasons(self) -> Iterable[tuple[Any, str]]:
        """Gives the tokens of waiting requests, each with what it waits for."""
        if self._wanted is not None:
            reason = f"{len(self._queue)} of {self._wanted.n} unrolls are here"
            if self.synchronous:
                late = self._late()
                reason = f"waits for unrolls of {', '.join(late[:3])}" if late else "no env-server is here"
            yield self._wanted.token, reason
        for item in self._parked:
            yield item.token, f"the table is full ({self._capacity} unrolls): the learner is behind"
        if self.synchronous:
            for item in (*self._queue, *self._kept):
                yield item.token, "the learner has not asked for the next batch"

    def _admit(self) -> bool:
        """Stores what waits for room while there is some; says whether any did."""
        parked = len(self._parked)
        while self._parked and len(self._queue) < self._capacity:
            self._store(self._parked.popleft())
        return len(self._parked) < parked

    def _store(self, item: _Item) -> None:
        self._queue.append(item)
        self.inserts += 1
        if self.synchronous:
            self._groups[item.unroll.slot] = _Group(item.unroll.life)
        else:
            self._answers.append(Stored(item.token, 0))

    def _discard_stale(self, version: int) -> None:
        """Drops what `version` may not train on: acknowledged, counted, never handed out."""
        fresh: deque[_Item] = deque()
        for item in self._queue:
            if item.oldest >= version - self._max_lag:
                fresh.append(item)
                continue
            self.discarded += 1
            if self.synchronous:
                self._answers.append(Stored(item.token, version))
        self._queue = fresh

    def _take(self, n: int) -> list[_Item]:
        return [self._queue.popleft() for _ in range(n)] if len(self._queue) >= n else []

    def _take_synchronous(self, now: float) -> tuple[list[_Item], tuple[str, ...]]:
        if not self._queue:
            return [], ()
        late = self._late()
        if self._ready_since is None:
            self._ready_since = now
        if late and now < self._ready_since + self._deadline_s:
            return [], ()
        for slot in late:
            self._groups[slot].live = False
        # By environment, not by arrival: the order of a batch must not depend on timing.
        taken = sorted(self._queue, key=lambda item: (item.unroll.first_env, item.unroll.slot, item.unroll.number))
        self._queue.clear()
        return taken, tuple(late)

    def _late(self) -> list[str]:
        here = {item.unroll.slot for item in self._queue if item.unroll.life == self._groups[item.unroll.slot].life}
        return sorted(slot for slot, group in self._groups.items() if group.live and slot not in here)
