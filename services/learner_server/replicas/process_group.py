"""The process group that a learner's ranks form, and whether they agree. What it is for is `common/rl/ranks.py`.

Everything stays on the loopback: the ranks of one learner are processes of one machine.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from common.errors import HeadraceError
from common.rl import ranks
from services.learner_server.trainer import Trainer

LOOPBACK = "127.0.0.1"


def open_store(size: int, patience_s: float) -> tuple[Store, int]:
    """Gives rank 0's store, through which `size` ranks find each other, and its port."""
    # A store that opens its port itself does so on every interface.
    listener = socket.create_server((LOOPBACK, 0))
    port, patience = int(listener.getsockname()[1]), timedelta(seconds=patience_s)
    descriptor = listener.detach()
    return TCPStore(LOOPBACK, port, size, True, patience, wait_for_workers=False, master_listen_fd=descriptor), port


def find_store(port: int, size: int, patience_s: float) -> Store:
    """Gives another rank's way to that store."""
    return TCPStore(LOOPBACK, port, size, is_master=False, timeout=timedelta(seconds=patience_s))


def join(store: Store, rank: int, size: int, device: str, patience_s: float) -> str:
    """Joins the group, once all do; gives the name of what moves the gradients.

    A collective that takes longer than `patience_s` is an error. Tensors on the CPU go through gloo either way.
    """
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=patience_s))
    return "nccl" if on_gpu else "gloo"


def agree(trainer: Trainer) -> None:
    """Raises an error on every rank unless parameters, optimisers, moments and generators are the same on all."""
    digest = hashlib.blake2b(digest_size=7)
    for part in _parts(trainer.state_dict()):
        digest.update(part)
    numbers = ranks.gathered(torch.tensor(int.from_bytes(digest.digest(), "little"))).tolist()
    if different := [rank for rank, number in enumerate(numbers) if number != numbers[0]]:
        raise HeadraceError(
            f"learner.replicas={len(numbers)}: replicas {different} have other weights than replica 0",
            "an algorithm's gradients and moments must go through common/rl/ranks.py; the newest checkpoint is good",
        )


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield value.detach().cpu().contiguous().numpy().tobytes()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item)
    else:
        yield repr(value).encode()
