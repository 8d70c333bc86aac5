"""A learner's other ranks, as rank 0 has them, which is the learner itself: it starts them, feeds them and ends them.

Rank 0 alone talks to replay and decides what is trained on, so no rank ever waits for a batch that another has. Where
one ends or hangs, what rank 0 is doing raises PeerLost, and whoever watches the learner starts it again.
"""

from __future__ import annotations

import logging
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
import torch.distributed as dist

from common.config import Config
from common.errors import ConfigError, PeerLost
from common.messages import PROTOCOL, Batch, Finish, Hello, Message, Ok
from common.types import Arrays
from services.learner_server.replicas.columns import columns
from services.learner_server.replicas.link import receive, send
from services.learner_server.replicas.process_group import agree, join, open_store
from services.learner_server.trainer import Trainer, Update

# Ranks do the same work at the same time: one that is a minute late does not come any more.
PATIENCE_S = 60.0
END_S = 5.0
OBITUARY_S = 1.0
log = logging.getLogger("headrace.learner")


@dataclass(frozen=True, slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    link: socket.socket


class Replicas:
    """Ranks 1 and up of one learner, from `with` to its end; of a learner of one rank there are none to look after."""

    def __init__(self, config: Config, run_dir: Path, patience_s: float = PATIENCE_S) -> None:
        self._config = config
        self._run_dir = run_dir
        self._size = config.learner.replicas
        self._patience_s = patience_s
        self._ranks: list[_Rank] = []
        self._formed = self._broken = self._compared = False
        # An update runs on a thread, and the end may come while it does.
        self._busy = threading.Lock()

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The processes of ranks 1 and up."""
        return [rank.process for rank in self._ranks]

    def __enter__(self) -> Replicas:
        if self._size > 1:
            _check(self._config)
        for number in range(1, self._size):
            self._ranks.append(_start(number))
        return self

    def form(self, trainer: Trainer) -> None:
        """Makes the ranks one group, all as `trainer`, which is as the run's newest checkpoint if there is one.

        Raises PeerLost for a rank that does not start within `net.give_up_s`.
        """
        if self._size == 1:
            return
        with self._watched():
            store, port = open_store(self._size, self._patience_s)
            pointer = self._run_dir / "checkpoints" / "latest"
            job = {
                "config": self._config.model_dump(mode="json"),
                "env": trainer.env.to_wire(),
                "run_dir": str(self._run_dir),
                "checkpoint": pointer.read_text() if pointer.exists() else "",
                "size": self._size,
                "port": port,
                "patience_s": self._patience_s,
            }
            for rank in self._ranks:
                rank.link.settimeout(self._config.net.give_up_s)
                send(rank.link, Hello(PROTOCOL, "learner", f"learner/{rank.number}", 0, job | {"rank": rank.number}))
            for rank in self._ranks:
                if receive(rank.link) is None:
                    raise ConnectionResetError(f"replica {rank.number} did not start")
                rank.link.settimeout(self._patience_s)
            moved_by = join(store, 0, self._size, self._config.learner.device, self._patience_s)
            self._formed = True
        self.compare(trainer)
        log.info("trains on %d replicas, %s", self._size, moved_by)

    def update(self, trainer: Trainer, arrays: Arrays, progress: float) -> Update:
        """Trains on a staged batch, of which each rank gets its columns; raises what `Trainer.update` does."""
        if self._size == 1:
            return trainer.update(arrays, progress)
        lag = trainer.check(arrays)
        with self._watched():
            update = trainer.learn(self._share(arrays, progress), progress, lag)
        if not self._compared:
            # Early: an algorithm that keeps its gradients to itself shall not train for long.
            self._compared = True
            self.compare(trainer)
        return update

    def compare(self, trainer: Trainer) -> None:
        """Raises an error unless all ranks are as `trainer` is."""
        if self._size > 1:
            with self._watched():
                self._tell(Ok())
                agree(trainer)

    def _share(self, arrays: Arrays, progress: float) -> Arrays:
        """Gives every rank its part of a batch, and this one its own."""
        for rank in self._ranks:
            part = columns(arrays, rank.number, self._size)
            send(rank.link, Batch(0, 0, 0.0, 0, (), {**part, "progress": np.array(progress)}))
        return columns(arrays, 0, self._size)

    def _tell(self, message: Message) -> None:
        for rank in self._ranks:
            send(rank.link, message)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Turns what a lost rank makes of a collective or of a socket into an error that names it."""
        with self._busy:
            try:
                yield
            except (RuntimeError, OSError) as error:
                self._broken = True
                remedy = "the learner goes on from its newest checkpoint when it is started again"
                if lost := self._lost():
                    raise PeerLost(f"learner.replicas={self._size}: {', '.join(lost)}", remedy) from error
                if isinstance(error, TimeoutError) or "timed out" in str(error).lower():
                    text = f"learner.replicas={self._size}: a replica does not answer, though all run: {error}"
                    raise PeerLost(text, remedy) from error
                raise

    def _lost(self) -> list[str]:
        """Says which ranks have ended, and how."""
        # The connection of a process that ends is closed a little before it can be waited for.
        links = {rank.link: rank for rank in self._ranks}
        closed, _, _ = select.select(list(links), [], [], OBITUARY_S)
        said = []
        for rank in (links[link] for link in closed):
            with suppress(subprocess.TimeoutExpired):
                code = rank.process.wait(OBITUARY_S)
                said.append(f"replica {rank.number} (pid {rank.process.pid}) {_exit(code)}")
        return said

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        orderly = kind is None and self._formed and not self._broken
        if not orderly:
            for rank in self._ranks:
                rank.process.kill()
        with self._busy:
            if orderly:
                with suppress(OSError):
                    self._tell(Finish("the learner has ended"))
            if self._formed:
                dist.destroy_process_group()
            for rank in self._ranks:
                _end(rank)


def _check(config: Config) -> None:
    learner, gpus = config.learner, torch.cuda.device_count()
    if (kind := config.replay.tables[learner.table].kind) != "fifo":
        raise ConfigError(
            f"learner.replicas={learner.replicas} share new unrolls, replay.tables.{learner.table}.kind={kind!r} "
            "gives none",
            "set learner.replicas to 1, or train from a fifo table",
        )
    if learner.device not in ("cpu", "cuda"):
        raise ConfigError(
            f"learner.device={learner.device!r} is one device, learner.replicas={learner.replicas} need one each",
            "set it to cuda, of which replica i takes cuda:i, or to cpu",
        )
    if learner.device == "cuda" and gpus < learner.replicas:
        raise ConfigError(
            f"learner.replicas={learner.replicas} need a GPU each, this machine has {gpus}",
            "set learner.replicas to as many, or learner.device=cpu",
        )


def _start(number: int) -> _Rank:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([sys.executable, "-m", __package__], stdin=theirs.fileno())
    return _Rank(number, process, ours)


def _end(rank: _Rank) -> None:
    try:
        rank.process.wait(END_S)
    except subprocess.TimeoutExpired:
        log.warning("replica %d did not end within %.0f s and was killed", rank.number, END_S)
        rank.process.kill()
        rank.process.wait()
    rank.link.close()


def _exit(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
