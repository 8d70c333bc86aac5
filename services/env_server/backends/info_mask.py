"""The action mask of an environment's `info` as one more entry of its observation.

Owns what such a mask must be: Gymnasium's convention, `action_mask` in the info of `reset` and `step`, one entry per
choice of each component, in order, and not 0 where the choice is allowed. Knows nothing of how a policy uses it.
"""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import ActionSpec
from services.env_server.backends.spaces import action_spec

ENTRY = "action_mask"
Env = gymnasium.Env[Any, Any]

log = logging.getLogger("headrace.env")


def components(action: ActionSpec) -> list[int]:
    """Gives how many entries of a mask each component of an action has: one for a bit, none for a Box."""
    if action.parts:
        return [size for part in action.parts for size in components(part)]
    return [1] * action.size if action.kind == "multi_binary" else list(action.n)


def refuse(config: EnvConfig, who: str, remedy: str) -> None:
    """Raises ConfigError if `config` asks for a mask from info of a backend that looks at no info."""
    if config.info_mask:
        raise ConfigError(f"env.info_mask=true: {who} of env.id={config.id!r} show no info", remedy)


def hint(env_id: str, info: dict[str, Any]) -> None:
    """Says in the log that there is a mask to be had, where nobody asked for it."""
    if ENTRY in info:
        log.info(
            "%s has an action mask in its info: env.info_mask=true and network.action_mask=%s use it", env_id, ENTRY
        )


class InfoMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Shows a Dict: the observation's own entries, or "obs" where it is no Dict, and the mask as `action_mask`.

    The mask must come with every reset and step; it may be left out of the step that terminates an episode, after which
    nothing is chosen.
    """

    def __init__(self, env: Env, env_id: str) -> None:
        super().__init__(env)
        self._id = env_id
        self._sizes = np.array(components(action_spec(env_id, env.action_space)), np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._entries = int(self._sizes.sum())
        if not self._entries:
            raise ConfigError(f"env.info_mask=true: the actions of env.id={env_id!r} have no choices", "leave it out")
        own = env.observation_space
        self._joined = isinstance(own, spaces.Dict)
        parts = dict(own.spaces) if isinstance(own, spaces.Dict) else {"obs": own}
        if ENTRY in parts:
            raise ConfigError(
                f"env.info_mask=true: env.id={env_id!r} has an observation {ENTRY!r} already",
                f"leave it out, and set network.action_mask={ENTRY}",
            )
        self.observation_space = spaces.Dict({**parts, ENTRY: spaces.MultiBinary(self._entries)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seen, info = self.env.reset(seed=seed, options=options)
        return self._with(seen, self._mask(info, "reset")), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        # Where it terminated nothing is chosen any more: what the environment says of that, or does not, is no error.
        mask = np.zeros(self._entries, np.int8) if terminated else self._mask(info, "step")
        return self._with(seen, mask), reward, terminated, truncated, info

    def _with(self, seen: Any, mask: np.ndarray) -> dict[str, Any]:
        return {**seen, ENTRY: mask} if self._joined else {"obs": seen, ENTRY: mask}

    def _mask(self, info: dict[str, Any], where: str) -> np.ndarray:
        if ENTRY not in info:
            raise ConfigError(
                f"env.info_mask=true: the info that {where} of env.id={self._id!r} gave has no {ENTRY!r}, it has "
                f"{sorted(info)}",
                "give one in the info of every reset and step, or leave env.info_mask out",
            )
        mask = np.asarray(info[ENTRY])
        if mask.shape != (self._entries,) or mask.dtype.kind not in "biu":
            raise ConfigError(
                f"env.info_mask=true: {where} of env.id={self._id!r} gave a mask of {mask.dtype} {mask.shape}, its "
                f"actions have {self._entries} choices",
                "give one bool or int8 per choice of each component, in order",
            )
        # A bit that may not be 1 is 0; any other component must have something left to choose.
        stuck = ~np.logical_or.reduceat(mask, self._starts) & (self._sizes > 1)
        if stuck.any():
            raise ConfigError(
                f"env.info_mask=true: {where} of env.id={self._id!r} gave a mask that allows nothing",
                "allow one choice of each component, or end the episode where there is none",
            )
        allowed: np.ndarray = (mask != 0).view(np.int8)
        return allowed
