"""What a checkpoint's training state goes back into: refused where the settings describe something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from common.errors import ConfigError
from common.rl.actor import load_policy
from common.rl.algorithms.base import Algorithm
from common.rl.networks import NetworkConfig

_REMEDY = "use the settings that the run was trained with"
# Of the first weights, or of speed alone.
_FREE = ("log_std_init", "channels_last", "bf16", "compile")


def restore(state: Mapping[str, Any], layout: str, policy: nn.Module, algorithm: Algorithm) -> None:
    """Loads a trainer's `state` into `policy` and `algorithm`, whose network `layout` describes as weights messages do.

    Raises ConfigError for the state of another network, even one of the same shapes, or of another algorithm.
    """
    # Checkpoints of before had none.
    trained, ours = (_network(text) for text in (state.get("layout", layout), layout))
    for key in sorted(trained.keys() | ours.keys()):
        if trained.get(key) != ours.get(key):
            text = f"network.{key}={ours.get(key)!r}: the checkpoint was trained with {trained.get(key)!r}"
            raise ConfigError(text, _REMEDY)
    load_policy(policy, state["policy"])
    try:
        algorithm.load_state_dict(state["algorithm"])
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
        text = f"the checkpoint is of another algorithm than `algorithm:` and `learner:` describe: {why:.300}"
        raise ConfigError(text, _REMEDY) from error


def _network(layout: str) -> dict[str, Any]:
    defaults = json.loads(NetworkConfig().model_dump_json())
    return {key: value for key, value in (defaults | json.loads(layout)[0]).items() if key not in _FREE}
