"""A batch of unrolls as tensors, named and shaped as `common.types` says; knows no algorithm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import ProtocolError
from common.rl.transfer import to_device
from common.types import Arrays, prefixed, select

_REQUIRED = ("first", "action", "reward", "terminated", "truncated")
_OPTIONAL = ("reward_before", "online", "relative")
_GROUPS = ("observation.", "extras.", "state.")


@dataclass(frozen=True, slots=True)
class Batch:
    """Unrolls side by side, [T, B, ...] (observation and first have T + 1 rows).

    `valid` is None when every step is; `final_index` [K] int64 (t * B + b) and `final` are None and empty when no step
    has a true last observation of its own. `reward_before` [B] is None where it did not come; `online` [B] bool says
    which columns were never trained on before, None that none was. `relative` [B] is N · P(i) of each column's draw by
    priority, None where there are no priorities.
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
    reward_before: Tensor | None = None
    online: Tensor | None = None
    relative: Tensor | None = None

    @property
    def steps(self) -> int:
        """The number of valid steps."""
        return self.reward.numel() if self.valid is None else int(self.valid.sum())

    def online_steps(self) -> Tensor | None:
        """Gives the valid steps of online columns, [T, B]; None where they are all."""
        if self.online is None:
            return self.valid
        columns = self.online.expand(self.reward.shape)
        return columns if self.valid is None else columns & self.valid

    def acted_on(self) -> dict[str, Tensor]:
        """Gives the observation before each step, [T * B, ...] each: all rows but the last."""
        return {name: x[:-1].flatten(0, 1) for name, x in self.observation.items()}

    def columns(self, index: Tensor) -> Batch:
        """Gives the columns `index` [N] int64, each at most once, as a batch [T, N, ...] of copies, in that order."""
        rows = ("first", "action", "reward", "terminated", "truncated", "valid")
        found = {name: getattr(self, name) for name in rows}
        picked: dict[str, Any] = {name: None if x is None else x[:, index] for name, x in found.items()}
        final_index, final = self._final_of(index)
        return replace(
            self,
            **picked,
            observation={name: x[:, index] for name, x in self.observation.items()},
            extras={name: x[:, index] for name, x in self.extras.items()},
            state={name: x[index] for name, x in self.state.items()},
            reward_before=None if self.reward_before is None else self.reward_before[index],
            online=None if self.online is None else self.online[index],
            relative=None if self.relative is None else self.relative[index],
            final_index=final_index,
            final=final,
        )

    def _final_of(self, index: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        if self.final_index is None:
            return None, {}
        columns, n = self.reward.shape[1], index.shape[0]
        place = torch.full((columns,), -1, device=index.device)
        place[index] = torch.arange(n, device=index.device)
        column = place[self.final_index % columns]
        kept = (column >= 0).nonzero().squeeze(-1)
        if not kept.shape[0]:
            return None, {}
        moved = self.final_index.div(columns, rounding_mode="floor") * n + column
        return moved[kept], {name: x[kept] for name, x in self.final.items()}


def padded(rows: Tensor) -> Tensor:
    """Repeats the last of some rows [K, ...] until there are a power of two of them; K is at least 1.

    Last observations are another number in each batch, and oneDNN keeps what it compiles for each number of rows that
    it meets, up to a gigabyte of it.
    """
    k = rows.shape[0]
    return rows[torch.arange(1 << (k - 1).bit_length(), device=rows.device).clamp_max(k - 1)]


def required(arrays: Arrays, name: str) -> np.ndarray:
    """Gives the array of that name; a ProtocolError names what is missing."""
    try:
        return arrays[name]
    except KeyError:
        message = f"the batch has no {name!r}; it has {', '.join(sorted(arrays))}"
        raise ProtocolError(message, "the env-server and the learner must run the same protocol") from None


def to_batch(arrays: Arrays, device: torch.device) -> Batch:
    """Makes a Batch of time-major arrays, without a copy where they are writable and the device is the CPU.

    `valid`, `final_index` and `final.*` may be absent or empty; a missing array is a ProtocolError that names it.
    """
    taken = {name: required(arrays, name) for name in _REQUIRED}
    taken |= {name: array for name, array in arrays.items() if name in _OPTIONAL or name.startswith(_GROUPS)}
    if (valid := arrays.get("valid")) is not None and not valid.all():
        taken["valid"] = valid
    if (index := arrays.get("final_index")) is not None and index.size:
        taken["final_index"] = index.astype(np.int64)
        taken |= prefixed("final", select("final", arrays))
    sent = to_device(taken, device)
    return Batch(
        **{name: sent[name] for name in _REQUIRED},
        **{name: sent.get(name) for name in ("valid", "final_index", *_OPTIONAL)},  # type: ignore[arg-type]
        observation=select("observation", sent),
        extras=select("extras", sent),
        state=select("state", sent),
        final=select("final", sent),
    )
