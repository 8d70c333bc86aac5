"""A batch of unrolls as tensors, named and shaped as `common.types` says; knows no algorithm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import ProtocolError
from common.types import Arrays, select


@dataclass(frozen=True, slots=True)
class Batch:
    """Unrolls side by side, [T, B, ...] (observation and first have T + 1 rows).

    `valid` is None when every step is; `final_index` [K] int64 (t * B + b) and `final` are None and empty when no step
    has a true last observation of its own.
    """

    observation: dict[str, Tensor]
    first: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor | None
    extras: dict[str, Tensor]
    state: dict[str, Tensor]
    final_index: Tensor | None
    final: dict[str, Tensor]

    @property
    def steps(self) -> int:
        """The number of valid steps."""
        return self.reward.numel() if self.valid is None else int(self.valid.sum())


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    # torch has no read-only tensors: a received view must be copied before it is lent out.
    writable = array if array.flags.writeable else array.copy()
    return torch.from_numpy(writable).to(device)


def _required(arrays: Arrays, name: str) -> np.ndarray:
    try:
        return arrays[name]
    except KeyError:
        message = f"the batch has no {name!r}; it has {', '.join(sorted(arrays))}"
        raise ProtocolError(message, "the env-server and the learner must run the same protocol") from None


def to_batch(arrays: Arrays, device: torch.device) -> Batch:
    """Makes a Batch of time-major arrays, without a copy where they are writable and the device is the CPU.

    `valid`, `final_index` and `final.*` may be absent or empty; a missing array is a ProtocolError that names it.
    """

    def group(prefix: str) -> dict[str, Tensor]:
        return {name: _tensor(array, device) for name, array in select(prefix, arrays).items()}

    def one(name: str) -> Tensor:
        return _tensor(_required(arrays, name), device)

    valid = arrays.get("valid")
    index = arrays.get("final_index")
    has_final = index is not None and index.size > 0
    return Batch(
        observation=group("observation"),
        first=one("first"),
        action=one("action"),
        reward=one("reward"),
        terminated=one("terminated"),
        truncated=one("truncated"),
        valid=None if valid is None or valid.all() else _tensor(valid, device),
        extras=group("extras"),
        state=group("state"),
        final_index=_tensor(index.astype(np.int64), device) if index is not None and has_final else None,
        final=group("final") if has_final else {},
    )
