"""Which requests share a forward pass, and when: a queue without I/O or clock."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """Batches are due when they hold `max_size` rows or their oldest request has waited `wait_s`.

    With `alone` each request is a batch of its own, so that results do not depend on who asked at the same time.
    """

    def __init__(self, max_size: int, wait_s: float, alone: bool) -> None:
        self._max_size = max_size
        self._wait_s = wait_s
        self._alone = alone
        self._queue: deque[tuple[Item, int, float]] = deque()
        self._rows = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, item: Item, rows: int, now: float) -> None:
        """Queues a request of `rows` rows."""
        self._queue.append((item, rows, now))
        self._rows += rows

    def due_in(self, now: float) -> float | None:
        """Gives the seconds until a batch is due: 0 when one is, None when nothing is queued."""
        if not self._queue:
            return None
        if self._alone or self._rows >= self._max_size:
            return 0.0
        return max(0.0, self._queue[0][2] + self._wait_s - now)

    def take(self) -> list[Item]:
        """Gives the next batch, oldest first: at most `max_size` rows, but always one request."""
        batch, rows = list[Item](), 0
        while self._queue and (not batch or (not self._alone and rows + self._queue[0][1] <= self._max_size)):
            item, size, _ = self._queue.popleft()
            batch.append(item)
            rows += size
        self._rows -= rows
        return batch
