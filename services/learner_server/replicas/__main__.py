"""`python -m services.learner_server.replicas`: a rank above 0 of a learner, which starts it with one socket as stdin.

It has a copy of the trainer, is handed its part of each batch, and trains with the others. It asks nobody for anything,
writes nothing, and ends when the learner does.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch.distributed as dist

from common import log as logs
from common.allocator import keep_freed_memory
from common.config import validate
from common.errors import HeadraceError, PeerLost
from common.messages import Batch, Finish, Hello, Message, Ok
from common.rl.algorithms.base import NonFiniteUpdate
from common.types import EnvSpec
from services.learner_server.checkpoint import find, load_state
from services.learner_server.replicas.link import receive, send
from services.learner_server.replicas.process_group import agree, find_store, join
from services.learner_server.trainer import Trainer

log = logging.getLogger("headrace.learner")


def main() -> int:
    # The learner is who is told to stop; it then trains its last batch, and this with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logs.set_up("learner replica")
    keep_freed_memory()
    link = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    inbox: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_read, args=(link, inbox), name="inbox", daemon=True).start()
    hello = inbox.get()
    assert isinstance(hello, Hello)
    logs.set_up(hello.name)
    try:
        _train(_start(link, hello.spec or {}), inbox)
    except HeadraceError as error:
        log.error("error: %s", error)
        return error.exit_code
    dist.destroy_process_group()
    return 0


def _read(link: socket.socket, inbox: SimpleQueue[Message]) -> None:
    """Takes in messages all the time: the learner's end is seen in the midst of an update, and in a collective."""
    while (message := receive(link)) is not None:
        inbox.put(message)
    os._exit(PeerLost.exit_code)


def _start(link: socket.socket, job: dict[str, Any]) -> Trainer:
    """Makes the trainer as the learner has it, says so, and joins the group."""
    rank, size, patience_s = int(job["rank"]), int(job["size"]), float(job["patience_s"])
    config = validate(job["config"])
    if config.learner.device == "cuda":
        learner = config.learner.model_copy(update={"device": f"cuda:{rank}"})
        config = config.model_copy(update={"learner": learner})
    trainer = Trainer(config, EnvSpec.from_wire(job["env"]), 0)
    if job["checkpoint"]:
        trainer.load_state_dict(load_state(find(Path(job["run_dir"]), job["checkpoint"]))["trainer"])
    store = find_store(int(job["port"]), size, patience_s)
    send(link, Ok())
    join(store, rank, size, config.learner.device, patience_s)
    return trainer


def _train(trainer: Trainer, inbox: SimpleQueue[Message]) -> None:
    while not isinstance(message := inbox.get(), Finish):
        if isinstance(message, Batch):
            progress = float(message.arrays.pop("progress"))
            with suppress(NonFiniteUpdate):  # all ranks have undone it
                trainer.learn(message.arrays, progress, np.zeros(1))
        else:
            agree(trainer)


if __name__ == "__main__":
    # At once: nothing is left to be written, and the learner waits for this end.
    os._exit(main())
