"""The learner's side of hindsight (Andrychowicz et al. 2017): what a step was worth under another goal.

The table exchanges goals and says where; a pure function of the environment's author says what the step then gave.
Knows no network and no table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError, ProtocolError
from common.rl.replayed import Transitions
from common.rl.settings import load_attribute

KEY = "algorithm.reward"
ACHIEVED, DESIRED = "achieved_goal", "desired_goal"


def check_hindsight_reward(table: str, k: int, options: Mapping[str, Any]) -> None:
    """Raises ConfigError if a table exchanges goals, `k` of k + 1, for an algorithm that would keep the old rewards."""
    if k and not options.get("reward"):
        raise ConfigError(
            f"replay.tables.{table}.her.k={k} with {KEY}={options.get('reward', '')!r}: nobody gives exchanged goals "
            "their rewards",
            f"set {KEY}, of an algorithm that has it, to package.module:function, or her.k to 0",
        )


class Goals:
    """`path` is package.module:function, called with the goals that a step achieved and desired, numpy [n, ...] each.

    It gives the rewards [n], or them and where the episode is thereby over, [n] bool; alone, rewards end no episode.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._reward: Callable[[np.ndarray, np.ndarray], Any] | None = load_attribute(path, KEY) if path else None

    def relabel(self, batch: Transitions) -> Transitions:
        """Gives the batch with `reward` and `discount` of relabelled items computed anew; steps are single ones.

        A batch that was relabelled without a function, or an answer of another shape, is a ConfigError.
        """
        if batch.relabelled is None:
            return batch
        if self._reward is None:
            raise ConfigError(f"the table exchanges goals, and {KEY} is empty", "name the function that gives rewards")
        try:
            achieved, desired = batch.next_observation[ACHIEVED], batch.next_observation[DESIRED]
        except KeyError as error:
            message = f"the batch has no observation {error.args[0]!r}; it has {', '.join(batch.next_observation)}"
            raise ProtocolError(message, "set the table's her.k to 0") from None
        given = self._reward(achieved.cpu().numpy(), desired.cpu().numpy())
        reward, over = given if isinstance(given, tuple) else (given, None)
        own = self._as_items(reward, batch.reward)
        reward = torch.where(batch.relabelled, own, batch.reward)
        # The largest is that of a step that ends nothing: the table gives it to all that it relabels, ended or not.
        onward = batch.discount.max().expand_as(batch.discount)
        if over is not None:
            onward = onward * (1.0 - self._as_items(over, batch.discount))
        return replace(batch, reward=reward, discount=torch.where(batch.relabelled, onward, batch.discount))

    def _as_items(self, given: Any, like: Tensor) -> Tensor:
        array = np.asarray(given, np.float32)
        if array.shape != tuple(like.shape):
            raise ConfigError(
                f"{KEY}={self._path!r} gave {array.shape} for {tuple(like.shape)} items", "give one number per item"
            )
        return torch.from_numpy(array).to(like.device)
