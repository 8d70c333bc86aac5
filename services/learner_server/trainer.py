"""The update: a staged batch in, new weights out. Knows no socket, no loop and no file."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch

from common.config import Config
from common.errors import HeadraceError, ProtocolError
from common.messages import Weights
from common.rl import ranks
from common.rl.actor import pack_weights, weights_layout
from common.rl.algorithms.base import NonFiniteUpdate, OptimizerConfig
from common.rl.batch import Batch, to_batch
from common.rl.registry import named_algorithm
from common.rl.replayed import Transitions, to_transitions
from common.rl.requirements import check_batch, check_job
from common.rl.restore import restore
from common.rl.stacks import stack
from common.rl.transfer import device_of
from common.types import Arrays, EnvSpec, make_version, show_version
from services.learner_server.staging import in_turn

# What was drawn for several batches, and each: on the learner's device, and the items [n] where an array is not finite.
Staged = tuple[Arrays, list[tuple[Transitions | Batch, dict[str, np.ndarray]]]]
# One inf in a normaliser's moments would spoil every update after it.
_FROM_ENVIRONMENT = ("observation.", "next_observation.", "final.", "reward")
_MEND = "mend the environment: it gives inf or nan"
_OPTIMIZER_SETTINGS = ("lr", "lr_schedule", "eps", "alpha", "max_grad_norm")


class Update(NamedTuple):
    """What one update did: the algorithm's scalars, valid steps trained on, policy lags in versions, and the items'
    new priorities [n] if they have any. Or what `made` updates did, one after another: the last one's scalars, and why
    others were `skipped`; a priority of nan is that of an item which keeps its own."""

    scalars: dict[str, float]
    steps: int
    lag_mean: float
    lag_max: int
    priorities: np.ndarray | None = None
    made: int = 1
    skipped: tuple[NonFiniteUpdate, ...] = ()


def _not_finite(batch: Arrays) -> dict[str, np.ndarray]:
    """Gives for each array of a ring's batch in which an environment's number is not finite the items, [n] bool."""
    axis = batch["reward"].ndim - 1
    found: dict[str, np.ndarray] = {}
    for name, array in batch.items():
        if name.startswith(_FROM_ENVIRONMENT) and array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            items = np.moveaxis(finite, axis, 0).reshape(array.shape[axis], -1)
            found[name] = ~np.logical_and.reduce(items, axis=1)
    return found


class Trainer:
    """An algorithm, the policy it trains and the version of its weights."""

    def __init__(self, config: Config, env: EnvSpec, ordinal: int) -> None:
        torch.set_num_threads(config.learner.threads)
        learner = config.learner
        self._device = device_of("learner.device", learner.device)
        self._max_lag = config.replay.max_policy_lag
        self.env = env
        named = {"name": learner.optimizer} | {name: getattr(learner, name) for name in _OPTIMIZER_SETTINGS}
        optimizer = OptimizerConfig(**{name: value for name, value in named.items() if value is not None})
        algorithm, options = named_algorithm(config.algorithm)
        check_job(config)
        self.policy = algorithm.make_actor(options, config.network, env, config.run.seed).to(self._device)
        check_batch(config, env, self.policy.spec)
        self.algorithm = algorithm(options, optimizer, self.policy, config.run.seed)
        self._specs = env.to_wire(), self.policy.spec.to_wire()
        self.layout = json.dumps([config.network, weights_layout(self.policy)])
        self.ordinal, self.updates = ordinal, 0

    @property
    def version(self) -> int:
        return make_version(self.ordinal, self.updates)

    def weights(self, steps: int, progress: float) -> Weights:
        """Gives the message that carries all weights, after `steps` and at `progress` (0..1) of the job."""
        acting = self.algorithm.acting(steps, progress)
        arrays = {"weights": pack_weights(self.policy)}
        return Weights(self.version, *self._specs, self.layout, acting, arrays)

    def update(self, arrays: Arrays, progress: float) -> Update:
        """Trains on a staged batch; raises NonFiniteUpdate, nothing changed, or ProtocolError on a batch too old."""
        return self.learn(arrays, progress, self.check(arrays))

    def stage(self, drawn: Arrays, batches: int) -> Staged:
        """Makes what was drawn for several batches ready for `update_in_turn`; reads nothing that training changes."""
        return drawn, [(self._tensors(batch), _not_finite(batch)) for batch in in_turn(drawn, batches)]

    def update_in_turn(self, staged: Staged, progress: float) -> Update:
        """Trains on one batch after another, past those that are not finite.

        An item that is not finite gets a priority of 0: it would spoil the next batch too.
        """
        drawn, batches = staged
        lag, priorities = self._lag(drawn), np.full(len(drawn["relative"]), np.nan, np.float32)
        made: list[Update] = []
        skipped: list[NonFiniteUpdate] = []
        for first, (batch, spoilt) in enumerate(batches):
            own = priorities[first :: len(batches)]
            try:
                if spoilt:
                    own[np.any(list(spoilt.values()), axis=0)] = 0.0
                    raise NonFiniteUpdate(f"{', '.join(spoilt)} is not finite", _MEND)
                made.append(self._learn(batch, progress, lag))
            except NonFiniteUpdate as error:
                skipped.append(error)
                continue
            if made[-1].priorities is not None:
                own[:] = made[-1].priorities
        if not made:
            return Update({}, 0, float(lag.mean()), int(lag.max()), priorities, 0, tuple(skipped))
        given = None if made[-1].priorities is None else priorities
        steps = sum(update.steps for update in made)
        return made[-1]._replace(steps=steps, priorities=given, made=len(made), skipped=tuple(skipped))

    def check(self, arrays: Arrays) -> np.ndarray:
        """Gives the lags of what just came in a staged batch; raises what `update` does, but for a loss."""
        lag = self._lag(arrays)
        for name, array in arrays.items():
            if name.startswith(_FROM_ENVIRONMENT) and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise NonFiniteUpdate(f"{name} is not finite", _MEND)
        return lag

    def learn(self, arrays: Arrays, progress: float, lag: np.ndarray) -> Update:
        """Trains on this rank's part of a batch that was checked and has `lag`; the steps are those of all ranks."""
        return self._learn(self._tensors(arrays), progress, lag)

    def _tensors(self, arrays: Arrays) -> Transitions | Batch:
        stack(arrays, self.env)
        to_tensors = to_transitions if self.algorithm.batches == "transitions" else to_batch
        return to_tensors(arrays, self._device)

    def _learn(self, batch: Transitions | Batch, progress: float, lag: np.ndarray) -> Update:
        # Moments of units that are dead decay into denormal numbers and stay there, which cost a hundred times an
        # ordinary one's arithmetic: a third of SAC's updates.
        torch.set_flush_denormal(True)
        try:
            scalars = self.algorithm.learn(batch, progress)
        finally:
            torch.set_flush_denormal(False)
        priorities = None if (errors := self.algorithm.priorities) is None else errors.cpu().numpy()
        self.updates += 1
        return Update(scalars, ranks.count(batch.steps), float(lag.mean()), int(lag.max()), priorities)

    def _lag(self, arrays: Arrays) -> np.ndarray:
        """Gives the versions between acting and now of what just came; replay has no bound."""
        versions = arrays.get("versions")
        if self.algorithm.batches != "unrolls" or versions is None:
            return np.zeros(1, np.int64)
        online = versions[:, arrays["online"]] if "online" in arrays else versions
        oldest, newest = int(online.min()), int(online.max())
        if newest > self.version:
            raise HeadraceError(
                f"a batch acted with {show_version(newest)} came to {show_version(self.version)}: another run's",
                "restart the inference- and replay-servers too, or start the learner with that run's --run-dir",
            )
        if oldest < self.version - self._max_lag:
            raise ProtocolError(
                f"a batch acted with {show_version(oldest)} came to {show_version(self.version)}, "
                f"beyond replay.max_policy_lag={self._max_lag}",
                "report this: the replay-server must discard it",
            )
        return self.version - online

    def state_dict(self) -> dict[str, Any]:
        """Gives all that a resume needs: nested dicts of tensors and scalars."""
        return {
            "layout": self.layout,
            "policy": dict(self.policy.state_dict()),
            "algorithm": self.algorithm.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(state, self.layout, self.policy, self.algorithm)
        self.updates = int(state["updates"])
