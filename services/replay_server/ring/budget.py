"""How many chunks of a ring fit into `max_bytes`: all arrays are counted, touched or not. Knows no messages."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from common.config import TableConfig
from common.errors import ConfigError
from services.replay_server.ring.items import PER_CHUNK, Items, kind_of
from services.replay_server.ring.selectors import selector_of
from services.replay_server.ring.storage import Layout, Storage


class Contents(NamedTuple):
    storage: Storage
    items: Items

    @property
    def reserved(self) -> int:
        return self.storage.reserved + sum(table.nbytes for table in self.items.tables.values())


class Budget:
    """The bytes of a table of these chunks. `slots` of them fit, with a side store of `side` rows.

    Where not all of `capacity` fits with a last observation for every step, one step in eight has room for one:
    episodes are seldom shorter, and the oldest chunks go early if they are.
    """

    def __init__(self, config: TableConfig, layout: Layout, unroll: int) -> None:
        self._config, self._layout, self._unroll = config, layout, unroll
        self._whole = max(1, config.capacity // unroll)
        # What one more chunk and one more row take: all arrays grow by as much with each.
        self._least = self._contents(1, 0).reserved
        self._chunk = self._contents(2, 0).reserved - self._least
        self._row = self._contents(1, 1).reserved - self._least
        self.slots, self.side = self._whole, self._whole * (unroll + 1)
        if config.max_bytes and self._bytes(self.slots, self.side) > config.max_bytes:
            self.slots = bisect_right(range(1, self._whole + 1), config.max_bytes, key=self.holding)
            self.side = self._eighth(self.slots)

    def contents(self) -> Contents:
        return self._contents(self.slots, self.side)

    def holding(self, slots: int) -> int:
        """Gives the bytes of that many chunks where one step in eight has room for a last observation."""
        return self._bytes(slots, self._eighth(slots))

    def check(self, table: str, columns: int, least: int) -> None:
        """Raises ConfigError, naming the `table`, unless unrolls of that many columns and `least` steps fit."""
        if columns > self._whole:
            raise ConfigError(
                f"replay.tables.{table}.capacity={self._config.capacity} cannot hold an unroll of {self._unroll} steps "
                f"of {columns} environments",
                f"set it to at least {self._unroll * columns}",
            )
        few = self.slots < self._whole and self.slots * self._unroll < least
        if few or columns * (self._unroll + 1) > self.side:
            slots = max(8 * columns, -(-least // self._unroll))
            enough = min(self.holding(slots), self._bytes(self._whole, self._whole * (self._unroll + 1)))
            raise ConfigError(
                f"replay.tables.{table}.max_bytes={self._config.max_bytes} is room for {self.slots * self._unroll} "
                f"steps: too few for unrolls of {columns} environments, or for the {least} that items and batches need",
                f"set it to at least {enough}",
            )

    def _contents(self, slots: int, side: int) -> Contents:
        kind = kind_of(self._config)
        storage = Storage(slots, self._unroll, self._layout, PER_CHUNK.get(kind, ()), side)
        return Contents(storage, kind(storage, self._config))

    def _bytes(self, slots: int, side: int) -> int:
        chosen = selector_of(self._config, slots * self._unroll)[0].nbytes
        return self._least + (slots - 1) * self._chunk + side * self._row + chosen

    def _eighth(self, slots: int) -> int:
        return slots * (self._unroll + 1) // 8
