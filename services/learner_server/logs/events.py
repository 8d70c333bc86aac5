"""TensorBoard's event files. Their writer ends for good at its first error; here another one takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

FLUSH_S = 10


class Events:
    """Writes scalars below `folder`, in a new file after each error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes scalars; raises OSError, now or at the next call, where the disk does not take them."""
        try:
            self._writer = self._writer or SummaryWriter(str(self._folder), flush_secs=FLUSH_S)
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        except OSError:
            self._writer = None
            raise

    def close(self) -> None:
        if self._writer is not None:
            # The disk may be full: what the job has come to is written elsewhere.
            with suppress(OSError):
                self._writer.close()
