"""The last action and the last reward as inputs of a network (Espeholt et al. 2018).

Knows no network: it gives numbers that join the features, and zeros where an episode begins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ProtocolError
from common.rl.actor import Seen
from common.rl.batch import Batch
from common.rl.bounded import Bounds, has_bounds
from common.types import ActionSpec, ArraySpec

# Among the rows of a batch, beside the observations, whose names are their environment's.
LAST = "<last step>"


class ActionCode(nn.Module):
    """Writes an action as numbers within ±1 where it can: one-hot choices, switches, and a Box by its bounds."""

    def __init__(self, action: ActionSpec) -> None:
        super().__init__()
        self._action = action
        self._parts = nn.ModuleList([ActionCode(part) for part in action.parts])
        bounded = action.kind == "box" and has_bounds(action.low, action.high)
        self._bounds = Bounds(action.low, action.high, action.shape) if bounded else None
        width = sum(action.n) if action.kind in ("discrete", "multi_discrete") else action.size
        self.width: int = sum(part.width for part in self._parts) if action.parts else width  # type: ignore[misc]

    def forward(self, action: Tensor) -> Tensor:
        """Gives [N, width] of actions [N, *shape]."""
        if self._action.parts:
            columns = torch.split(action, [part.size for part in self._action.parts], -1)
            shaped = [own.reshape(-1, *part.shape) for part, own in zip(self._action.parts, columns, strict=True)]
            return torch.cat([code(own) for code, own in zip(self._parts, shaped, strict=True)], -1)
        if self._bounds is not None:
            return self._bounds.inward(action)
        flat = action.reshape(action.shape[0], -1)
        if self._action.kind in ("box", "multi_binary"):
            return flat.float()
        choices = zip(flat.long().unbind(-1), self._action.n, strict=True)
        return torch.cat([functional.one_hot(choice, n) for choice, n in choices], -1).float()


class LastStep(nn.Module):
    """What a network is told of the step before: its action, its reward cut to ±1, or both; [N, width].

    `state` is what it takes from the step before by way of the actor's state.
    """

    def __init__(self, action: ActionSpec, last_action: bool, last_reward: bool) -> None:
        super().__init__()
        self.state = (ArraySpec("last_action", action.dtype, action.shape),) if last_action else ()
        self.code = ActionCode(action) if last_action else None
        self._reward = last_reward
        self.width = (self.code.width if self.code is not None else 0) + last_reward

    def _told(self, action: Tensor | None, reward: Tensor, first: Tensor) -> Tensor:
        parts = [] if self.code is None or action is None else [self.code(action)]
        if self._reward:
            parts.append(reward.clamp(-1.0, 1.0).unsqueeze(-1))
        told = torch.cat(parts, -1)
        # Not by a product: what an environment says before its first step may be anything.
        return told.masked_fill(first.unsqueeze(-1), 0.0)

    def of_step(self, seen: Seen) -> Tensor:
        """Gives [B, width] for one step of acting."""
        return self._told(seen.state.get("last_action"), seen.reward, seen.first)

    def of_rows(self, batch: Batch) -> Tensor:
        """Gives [T+1, B, width] for the rows of a batch."""
        if batch.reward_before is None:
            raise ProtocolError("the batch has no 'reward_before'", "report this: every unroll carries it")
        action = None
        if self.code is not None:
            action = torch.cat([batch.state["last_action"].unsqueeze(0), batch.action]).flatten(0, 1)
        reward = torch.cat([batch.reward_before.unsqueeze(0), batch.reward])
        return self._told(action, reward.flatten(), batch.first.flatten()).reshape(*batch.first.shape, -1)

    def of_final(self, batch: Batch) -> Tensor:
        """Gives [K, width] for the true last observations of a batch, each after its own step."""
        assert batch.final_index is not None
        action = batch.action.flatten(0, 1)[batch.final_index]
        reward = batch.reward.flatten()[batch.final_index]
        return self._told(action, reward, torch.zeros_like(reward, dtype=torch.bool))


def rows_of(batch: Batch, last: LastStep | None) -> dict[str, Tensor]:
    """Gives all that a network looks at in a batch, row by row [T+1, B, ...]: observations, and `last` as `LAST`."""
    return batch.observation if last is None else {**batch.observation, LAST: last.of_rows(batch)}
