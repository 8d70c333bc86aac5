"""R2D2 (Kapturowski et al. 2019): recurrent, double, dueling Q-learning on sequences drawn by priority.

A sequence begins with the state stored there. Its first `burn_in` steps only bring that state up to date, in the online
and in the target network, without a gradient; a sequence that begins with its episode needs none of it and is learned
from its first step on. The last `n_step` steps serve the returns alone. An episode's last step is followed by the row
of its true last observation, and by padding that is not `valid`. Values are learned in units of h, and n-step returns
are summed in their own. Table: sequence = burn_in + learned steps + n_step (40 + 80 + 5), period and rollout.unroll 40,
alpha 0.9.

Deviations: Huber's loss in place of ½ δ²; a batch's loss is averaged over all steps learned from, so that long
sequences weigh more than those cut short; the streams after the core have a layer of their own only if `hidden` is set;
a sequence begins at each episode's first step too; actors' first priorities are of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from common.errors import ConfigError, ProtocolError
from common.rl.algorithms.base import Batches, OptimizerConfig
from common.rl.algorithms.q_learner import QConfig, QLearner
from common.rl.batch import Batch
from common.rl.cores import State
from common.rl.ops.policy_gradient import masked_mean
from common.rl.ops.q_learning import huber, rescale, unrescale
from common.rl.ops.returns import n_step_returns
from common.rl.q_networks import QNetwork, QSettings, build_q_network
from common.rl.replayed import importance
from common.rl.settings import read_settings
from common.rl.value_heads import Mean
from common.types import EnvSpec

DEFAULT_OPTIMIZER = OptimizerConfig(name="adam", lr=1e-4, eps=1e-3, max_grad_norm=40.0)


class R2D2Config(QConfig):
    """The `algorithm` section."""

    discount: float = Field(0.997, ge=0, le=1, description="what a reward is worth one step later")
    n_step: int = Field(5, ge=1, description="rewards in a return")
    burn_in: int = Field(40, ge=0, description="steps of a sequence that only bring its state up to date")
    rescaling: float = Field(1e-3, ge=0, description="ε of h(x) = sign(x)(√(|x| + 1) - 1) + εx, the values' units")
    largest: float = Field(
        0.9, ge=0, le=1, description="share of the largest error in a priority; the mean's is the rest"
    )
    importance: float = Field(0.6, ge=0, le=1, description="exponent of the weights")
    target_every: int = Field(2500, ge=1, description="updates between those of the target network")


@dataclass(frozen=True, slots=True)
class _Window:
    """The part of a batch that is learned from: W steps and W + 1 rows."""

    rows: dict[str, Tensor]
    first: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor | None


def _window(rows: Mapping[str, Tensor], batch: Batch, burn_in: int) -> _Window:
    """Cuts out of each column W = L - burn_in steps: from its first where an episode begins there, else the last."""
    fresh = batch.first[0]
    length, columns = batch.reward.shape
    time = torch.arange(length - burn_in + 1, device=fresh.device).unsqueeze(-1) + burn_in * ~fresh
    column = torch.arange(columns, device=fresh.device)

    def steps(x: Tensor) -> Tensor:
        return x[time[:-1], column]

    return _Window(
        rows={name: x[time, column] for name, x in rows.items()},
        first=batch.first[time, column],
        action=steps(batch.action),
        reward=steps(batch.reward),
        terminated=steps(batch.terminated),
        truncated=steps(batch.truncated),
        valid=None if batch.valid is None else steps(batch.valid),
    )


class R2D2:
    """See the module."""

    batches: ClassVar[Batches] = "sequences"
    priorities: Tensor | None = None

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> QNetwork:
        config = read_settings(R2D2Config, algorithm, "algorithm")
        if not (network.get("lstm") or network.get("gru")):
            raise ConfigError(
                "network.lstm=0: r2d2 wants a recurrent core", "set network.lstm, or algorithm.name to dqn"
            )
        sequence_errors = (config.discount, config.rescaling) if config.actor_priorities else None
        settings = QSettings(
            Mean(config.huber), config.epsilon, dueling=True, hidden=config.hidden, sequence_errors=sequence_errors
        )
        return build_q_network(network, env, seed, settings)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, actor: QNetwork, seed: int) -> None:
        self._config = read_settings(R2D2Config, algorithm, "algorithm")
        self._learner = QLearner(self._config, optimizer.over(DEFAULT_OPTIMIZER), actor)
        self.acting = self._learner.acting
        self.state_dict, self.load_state_dict = self._learner.state_dict, self._learner.load_state_dict

    def _values(self, network: QNetwork, batch: Batch, window: _Window) -> Tensor:
        """Gives Q [W + 1, B, A], in units of h, from the stored state through the burn-in."""
        assert network.core is not None
        stored = tuple(batch.state[name] for name in network.core.names)
        out = network.unroll(window.rows, window.first, self._warmed(network, batch, stored))[0]
        return network.values(out.flatten(0, 1), None).reshape(*out.shape[:2], -1)

    @torch.no_grad()
    def _warmed(self, network: QNetwork, batch: Batch, stored: State) -> State:
        burn_in = self._config.burn_in
        if not burn_in:
            return stored
        rows = {name: x[:burn_in] for name, x in network.rows(batch).items()}
        after = network.unroll(rows, batch.first[:burn_in], stored)
        # Where a window begins with its episode, this state is dropped again.
        return tuple(x[-1] for x in after)

    @torch.no_grad()
    def _targets(self, batch: Batch, window: _Window, online: Tensor) -> Tensor:
        """Gives the n-step returns [W, B] in units of h, by double Q-learning."""
        config = self._config
        valued = self._values(self._learner.target.network, batch, window)
        best = online.argmax(-1, keepdim=True)
        after = unrescale(valued.gather(-1, best).squeeze(-1), config.rescaling)[1:]
        ends = (window.terminated, window.truncated, window.valid)
        returns = n_step_returns(window.reward, after, *ends, config.discount, config.n_step)
        return rescale(returns, config.rescaling)

    def _learned(self, batch: Batch) -> int:
        """Gives the steps of a window that are learned from, after a look at the batch."""
        config, length = self._config, batch.reward.shape[0]
        if batch.final_index is not None:
            raise ProtocolError("a sequence has a last observation beside it", "report this: it is its last row")
        if length <= config.burn_in + config.n_step:
            raise ConfigError(
                f"algorithm.burn_in={config.burn_in} and n_step={config.n_step} leave nothing of sequences of {length} "
                "steps to learn from",
                "set the table's sequence to their sum and the steps to learn from",
            )
        return length - config.burn_in - config.n_step

    def learn(self, batch: Batch, progress: float) -> dict[str, float]:
        """Takes one step; `progress` 0..1 is how much of the job is done."""
        learned, network = self._learned(batch), self._learner.network
        window = _window(network.rows(batch), batch, self._config.burn_in)
        q = self._values(network, batch, window)
        target = self._targets(batch, window, q.detach())[:learned]
        taken = q[:learned].gather(-1, window.action[:learned].long().unsqueeze(-1)).squeeze(-1)
        mask = None if window.valid is None else window.valid[:learned]
        error = target - taken
        loss = huber(error, self._config.huber)
        if batch.relative is not None:
            loss = loss * importance(batch.relative, self._config.importance, 0.0)
        priorities = self._priorities(error.detach().abs(), mask)
        scalars = {"q": masked_mean(taken.detach(), mask), "priority": priorities.mean()}
        metrics = self._learner.update(masked_mean(loss, mask), scalars, progress)
        network.inputs.fold(batch.acted_on(), batch.valid)
        self.priorities = priorities
        return metrics

    def _priorities(self, error: Tensor, mask: Tensor | None) -> Tensor:
        """Gives the mix of the largest and the mean error [B] of each sequence, [W, B] where `mask` says so."""
        share = self._config.largest
        if mask is None:
            return share * error.amax(0) + (1.0 - share) * error.mean(0)
        error = error * mask
        return share * error.amax(0) + (1.0 - share) * error.sum(0) / mask.sum(0).clamp(min=1)
