"""The update: a staged batch in, new weights out. Knows no socket, no loop and no file."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch

from common.config import Config
from common.errors import ConfigError, ProtocolError
from common.rl.algorithms.base import NonFiniteUpdate, OptimizerConfig
from common.rl.batch import to_batch
from common.rl.policy import build_policy, pack_weights, weights_layout
from common.rl.registry import algorithm_class
from common.types import Arrays, EnvSpec, make_version, show_version

# One inf in a normaliser's moments would spoil every update after it.
_FROM_ENVIRONMENT = ("observation.", "final.", "reward")
_OPTIMIZER_SETTINGS = ("lr", "lr_schedule", "eps", "alpha", "max_grad_norm")


class Update(NamedTuple):
    """What one update did: the algorithm's scalars, valid steps trained on, and the batch's policy lags in versions."""

    scalars: dict[str, float]
    steps: int
    lag_mean: float
    lag_max: int


class Trainer:
    """A policy, its algorithm and the version of its weights."""

    def __init__(self, config: Config, env: EnvSpec, ordinal: int) -> None:
        torch.set_num_threads(config.learner.threads)
        learner = config.learner
        self._device = torch.device(learner.device)
        self._max_lag = config.replay.max_policy_lag
        self.env = env
        self.policy = build_policy(config.network, env, config.run.seed).to(self._device)
        named = {"name": learner.optimizer} | {name: getattr(learner, name) for name in _OPTIMIZER_SETTINGS}
        optimizer = OptimizerConfig(**{name: value for name, value in named.items() if value is not None})
        options = dict(config.algorithm)
        name, table = str(options.pop("name", "ppo")), config.replay.tables[learner.table]
        if table.kind != "fifo":
            raise ConfigError(
                f"replay.tables.{learner.table}.kind={table.kind!r} gives transitions, {name} trains on whole unrolls",
                "set it to fifo",
            )
        algorithm = algorithm_class(name)
        self.algorithm = algorithm(options, optimizer, self.policy, config.run.seed)
        self.layout = json.dumps([config.network, weights_layout(self.policy)])
        self.ordinal = ordinal
        self.updates = 0

    @property
    def version(self) -> int:
        return make_version(self.ordinal, self.updates)

    def weights(self) -> np.ndarray:
        """Gives all weights as one new contiguous uint8 buffer."""
        return pack_weights(self.policy)

    def update(self, arrays: Arrays, progress: float) -> Update:
        """Trains on a staged batch; raises NonFiniteUpdate, nothing changed, or ProtocolError on a batch too old."""
        versions = arrays["versions"]
        oldest = int(versions.min())
        if oldest < self.version - self._max_lag:
            raise ProtocolError(
                f"a batch acted with {show_version(oldest)} came to {show_version(self.version)}, "
                f"beyond replay.max_policy_lag={self._max_lag}",
                "report this: the replay-server must discard it",
            )
        for name, array in arrays.items():
            if name.startswith(_FROM_ENVIRONMENT) and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise NonFiniteUpdate(f"{name} is not finite", "mend the environment: it gives inf or nan")
        batch = to_batch(arrays, self._device)
        scalars = self.algorithm.learn(batch, progress)
        lag = self.version - versions
        self.updates += 1
        return Update(scalars, batch.steps, float(lag.mean()), int(lag.max()))

    def state_dict(self) -> dict[str, Any]:
        """Gives all that a resume needs: nested dicts of tensors and scalars."""
        return {
            "policy": dict(self.policy.state_dict()),
            "algorithm": self.algorithm.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.updates = int(state["updates"])
