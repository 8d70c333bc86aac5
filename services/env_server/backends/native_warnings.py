"""What simulators' libraries say by themselves: MuJoCo's warnings become lines of the log, ALE's banner is left out.

Loads neither library by itself, but the module of the environment that is about to be made.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import suppress
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

log = logging.getLogger("headrace.env")

_said: set[str] = set()


def route_warnings(env_id: str) -> None:
    """Gives the libraries behind an id their place in the log, before one is made: MuJoCo warns of models too."""
    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    if spec is not None and isinstance(spec.entry_point, str):
        with suppress(ImportError, gymnasium.error.Error):  # whoever makes one hears of it
            load_env_creator(spec.entry_point)
    mujoco: Any = sys.modules.get("mujoco")
    if mujoco is not None:
        # MuJoCo's own way is stderr and a file in the working directory.
        mujoco.set_mju_user_warning(_warn)
    ale_py: Any = sys.modules.get("ale_py")
    if ale_py is not None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Warning)


def _warn(message: str) -> None:
    """Says a warning once: an unstable simulation has it again in every episode, with other numbers in it."""
    kind = re.sub(r"[\d.]+", "", message)
    if kind not in _said:
        _said.add(kind)
        # What is deprecated is in Gymnasium's own models, and nothing that a user could mend.
        log.log(logging.INFO if "deprecated" in message else logging.WARNING, "MuJoCo, said once: %s", message)
