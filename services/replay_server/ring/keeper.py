"""What a replay-server does to keep its rings through its death: restores them, writes them, and says what is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.service import Context
from services.replay_server.ring import checkpoint
from services.replay_server.ring.requirements import tell_of_uneven_shards
from services.replay_server.ring.table import RingTable


class RingKeeper:
    """The checkpoints of `rings`, by table name, in the run directory; `poll` sends the answers that a table owes."""

    def __init__(self, context: Context, rings: Mapping[str, RingTable], poll: Callable[[str], None]) -> None:
        self._context = context
        self._rings = rings
        self._poll = poll
        # Of each ring that was not restored, why.
        written = context.config.replay.checkpoint_s
        self._empty = dict.fromkeys(rings, "there is no checkpoint yet" if written else "replay.checkpoint_s is 0")
        self._lost = dict.fromkeys(rings, 0)
        self._sized: set[str] = set()
        self._spoilt: set[str] = set()
        self._refused: set[str] = set()
        self._writing: asyncio.Task[None] | None = None
        for name in rings:
            tell_of_uneven_shards(name, context.config, context.index)

    def restore(self) -> None:
        """Fills the rings from their checkpoints, saying aloud what they hold."""
        for name, table in self._rings.items() if self._context.config.replay.checkpoint_s else ():
            with checkpoint.read(self._path(name)) as saved:
                if saved is not None:
                    self._restore(name, table, saved)

    def _restore(self, name: str, table: RingTable, saved: Mapping[str, Any]) -> None:
        if table.restore(saved["table"]):
            del self._empty[name]
            said = f"is back with {table.size} items of {table.inserts} steps inserted, as of "
            said += f"{time.time() - saved['time']:.0f} s ago: what came after is lost"
        else:
            self._refused.add(name)
            self._empty[name] = "its checkpoint was made with other settings"
            said = f"starts empty: {self._empty[name]}"
        self._lost[name] = table.lost
        self._context.health.say(f"table {name} {said}")

    async def write_forever(self) -> None:
        """Writes the rings to disk every `replay.checkpoint_s`; each one's requests wait while it is written."""
        while interval := self._context.config.replay.checkpoint_s:
            await asyncio.sleep(interval)
            self._writing = asyncio.ensure_future(self._write_all())
            # A thread that writes cannot be called back: whoever ends this waits for it, in `write_last`.
            await asyncio.shield(self._writing)

    async def write_last(self) -> None:
        """Writes the rings as they are at the end, once `write_forever` has been cancelled: a resumed job has them.

        They take in nothing more: what waits is sent again to the next life. A checkpoint of other settings stays, for
        whoever stops the job to put these back.
        """
        if self._writing is not None:
            await self._writing
        for name, table in self._rings.items() if self._context.config.replay.checkpoint_s else ():
            if name not in self._refused:
                await self._write(name, table, last=True)

    async def _write_all(self) -> None:
        for name, table in self._rings.items():
            await self._write(name, table)

    async def _write(self, name: str, table: RingTable, last: bool = False) -> None:
        state, path = table.freeze(), self._path(name)
        try:
            await asyncio.to_thread(checkpoint.write, path, {"time": time.time(), "table": state})
            if not last:
                table.thaw()
                self._poll(name)
            await asyncio.to_thread(checkpoint.commit, path)
            self._refused.discard(name)
        except OSError as error:
            table.thaw()
            self._context.health.say(f"table {name} has no new checkpoint: {error}")

    def say_news(self) -> None:
        """Says aloud which rings keep fewer steps than their capacity, which have missed what was inserted, and which
        were given steps that are not finite."""
        for name, table in self._rings.items():
            limit = self._context.config.replay.tables[name].max_bytes
            if limit and table.capacity and name not in self._sized:
                self._sized.add(name)
                self._context.health.say(
                    f"table {name} keeps {table.capacity} steps: that many fit into {limit} bytes "
                    f"(replay.tables.{name}.max_bytes)"
                )
            if table.first_spoilt and name not in self._spoilt:
                self._spoilt.add(name)
                said = f"leaves out steps that are not finite, the first one {table.first_spoilt}"
                self._context.health.say(f"table {name} {said} (mend the environment: it gives inf or nan)")
            # What a ring holds is never more than its capacity.
            lost = min(table.lost, table.capacity) if name in self._empty else table.lost
            if lost > self._lost[name]:
                self._lost[name] = lost
                said = f"has lost {lost} steps that came after its checkpoint"
                if name in self._empty:
                    said = f"starts empty: {self._empty[name]}; at least {lost} steps that it held are lost"
                self._context.health.say(f"table {name} {said}")

    def _path(self, name: str) -> Path:
        if self._context.run_dir is None:
            raise ConfigError("replay.checkpoint_s has no run directory to write to", "give --run-dir, or set it to 0")
        return self._context.run_dir / "replay" / str(self._context.index) / name
