"""The uniform table: stores unrolls and draws single transitions from them, as the rate limiter allows.

A state machine without I/O or clock: requests go in, `poll` gives the answers that are due. Knows no algorithm, and
leaves to `columns.py` how transitions are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config import TableConfig
from common.errors import ConfigError, ProtocolError
from common.types import Arrays
from services.replay_server.columns import Columns
from services.replay_server.rate_limiter import RateLimiter
from services.replay_server.unroll import Answer, Drawn, Stored, Unroll

_UNTIMED = ("state.", "versions", "reward_before")
_PER_EPISODE = ("final", "episode_")

Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class _Wanted:
    token: Any
    n: int


class RingTable:
    """The newest `config.capacity` transitions, in columns of T = `unroll` steps; allocated at the first insert.

    `largest_insert` and `largest_sample` (transitions) bound one request where `samples_per_insert` couples both sides.
    """

    def __init__(
        self, name: str, config: TableConfig, unroll: int, largest_insert: int, largest_sample: int, seed: int
    ) -> None:
        self._name = name
        self._capacity = config.capacity
        self._unroll = unroll
        self._limiter = RateLimiter(
            name,
            config.min_size,
            config.samples_per_insert,
            config.error_buffer,
            largest_insert=largest_insert,
            largest_sample=largest_sample,
        )
        self._random = np.random.default_rng(seed)
        self._columns: Columns | None = None
        self._layout: Layout = {}
        self._layout_of = ""
        self._seen: dict[tuple[str, int], int] = {}
        self._parked: deque[tuple[Unroll, Any]] = deque()
        self._wanted: deque[_Wanted] = deque()
        self._held: tuple[str, ...] = ()
        self._polled = 0.0
        self.blocked_seconds = {"insert": 0.0, "sample": 0.0}
        self.discarded = 0

    @property
    def size(self) -> int:
        """Valid transitions that can be drawn."""
        return self._columns.size if self._columns else 0

    @property
    def nbytes(self) -> int:
        stored = self._columns.nbytes if self._columns else 0
        return stored + sum(unroll.nbytes for unroll, _ in self._parked)

    @property
    def parked(self) -> int:
        return len(self._parked)

    @property
    def inserts(self) -> int:
        """Valid transitions ever stored."""
        return self._limiter.inserts

    @property
    def samples(self) -> int:
        """Transitions ever drawn."""
        return self._limiter.samples

    def insert(self, unroll: Unroll, token: Any) -> bool:
        """Takes an unroll that `check` let through and gives False: it is stored when `poll` answers Stored."""
        self._parked.append((unroll, token))
        return False

    def sample(self, n: int, version: int, token: Any) -> None:
        """Asks for `n` transitions; a ring has no policy lag, so `version` does not matter to it.

        Drawn.arrays: observation.<name> and next_observation.<name> [n, ...], action, reward, terminated, truncated and
        extras.<name> [n, ...], keys [n] int64 and probabilities [n] float64, as `Columns.draw` says.
        """
        if n < 1:
            raise ProtocolError(f"a Sample of {n} transitions", "ask for at least 1")
        self._limiter.check_sample(n)
        self._wanted.append(_Wanted(token, n))

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
        while answer := self._store_next() or self._draw_next():
            answers.append(answer)
        self._polled = now
        self._held = tuple(side for side, queue in (("insert", self._parked), ("sample", self._wanted)) if queue)
        return answers

    def reasons(self) -> Iterable[tuple[Any, str]]:
        """Gives the tokens of waiting requests, each with what it waits for."""
        for wanted in self._wanted:
            yield wanted.token, self._limiter.why_sample_waits()
        for _, token in self._parked:
            yield token, self._limiter.why_insert_waits()

    def _store_next(self) -> Stored | None:
        if not self._parked:
            return None
        unroll, token = self._parked[0]
        stream = (unroll.slot, unroll.life)
        if unroll.number > self._seen.get(stream, -1):
            n = int(np.count_nonzero(unroll.arrays["valid"]))
            if not self._limiter.may_insert(n):
                return None
            self._allocated(unroll.arrays).put(unroll.arrays)
            self._limiter.inserted(n)
            self._seen[stream] = unroll.number
        self._parked.popleft()
        return Stored(token, 0)

    def _draw_next(self) -> Drawn | None:
        if not self._wanted or self._columns is None or not self._limiter.may_sample(self._wanted[0].n):
            return None
        wanted = self._wanted.popleft()
        self._limiter.sampled(wanted.n)
        return Drawn(wanted.token, arrays=self._columns.draw(wanted.n, self._random))

    def _allocated(self, arrays: Arrays) -> Columns:
        if self._columns is None:
            slots = max(arrays["reward"].shape[1], self._capacity // self._unroll)
            self._columns = Columns(slots, self._unroll, arrays)
        return self._columns

    def check(self, unroll: Unroll) -> None:
        """Raises ProtocolError if its arrays are unlike the first unroll's, ConfigError if it is too large."""
        steps, columns = unroll.arrays["reward"].shape
        index = unroll.arrays.get("final_index", ())
        if steps != self._unroll:
            raise ProtocolError(
                f"{unroll.slot} sends unrolls of {steps} steps, table {self._name!r} has columns of {self._unroll}",
                "set the same rollout.unroll for env-servers and replay-server",
            )
        if len(np.unique(index)) != len(index):
            raise ProtocolError(f"{unroll.slot} sends two last observations of one step", "list each step once")
        self._limiter.check_insert(steps * columns)
        layout = _layout(unroll.arrays)
        self._layout, self._layout_of = self._layout or layout, self._layout_of or unroll.slot
        for name in sorted(layout.keys() | self._layout.keys()):
            if layout.get(name) != self._layout.get(name):
                raise ProtocolError(
                    f"{unroll.slot} sends {name} as {_show(layout.get(name))}, table {self._name!r} holds it as "
                    f"{_show(self._layout.get(name))} from {self._layout_of}",
                    "run the same environment, network and version everywhere",
                )
        if columns > self._allocated(unroll.arrays).slots:
            raise ConfigError(
                f"replay.tables.{self._name}.capacity={self._capacity} cannot hold an unroll of {steps} steps of "
                f"{columns} environments",
                f"set it to at least {steps * columns}",
            )


def _layout(arrays: Arrays) -> Layout:
    """Gives each array's dtype and its shape per step and environment; those whose length varies are left out."""
    fixed = {name: array for name, array in arrays.items() if not name.startswith(_PER_EPISODE)}
    return {
        name: (array.dtype.str, array.shape[1 if name.startswith(_UNTIMED) else 2 :]) for name, array in fixed.items()
    }


def _show(layout: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if layout is None else f"{layout[0]} {layout[1]}"
