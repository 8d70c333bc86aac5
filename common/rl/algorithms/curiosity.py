"""ICM, the intrinsic curiosity module (Pathak et al. 2017): a reward for what a model of the world did not expect.

An encoder φ is trained by the inverse model, which reads off φ(s) and φ(s') what was done; the forward model foretells
φ(s'), and its error ½‖φ̂(s') - φ(s')‖² is the reward. It has an optimiser of its own. Knows no policy and no return.

Deviation: the forward model's loss does not reach the encoder, which could make it small by seeing nothing (as in Burda
et al. 2019).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from common.errors import ConfigError
from common.rl import ranks
from common.rl.algorithms.base import FlatOptimizer, OptimizerConfig
from common.rl.batch import Batch, padded
from common.rl.encoders import orthogonal
from common.rl.heads import Head
from common.rl.last_step import ActionCode
from common.rl.networks import Inputs, Trunk, read_network, width_of
from common.rl.ops.policy_gradient import masked_mean
from common.types import EnvSpec


class CuriosityConfig(BaseModel):
    """`algorithm.curiosity`: the intrinsic reward's weight, and how the models that give it are built and trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(0.01, gt=0, description="what the forward model's error is multiplied by")
    network: dict[str, Any] = Field(
        default_factory=dict, description="the encoder's, as the section `network`; what is no encoder's does nothing"
    )
    hidden: int = Field(256, gt=0, description="width of the inverse and of the forward model")
    forward_weight: float = Field(0.2, gt=0, lt=1, description="β: the forward model's share of the loss")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam")


class _Models(nn.Module):
    """The encoder and the two models, over one environment's spec."""

    def __init__(self, config: CuriosityConfig, env: EnvSpec) -> None:
        super().__init__()
        network = read_network(config.network)
        self.inputs = Inputs(env.observations, network)
        self.encoder = Trunk(self.inputs, network)
        self.code = ActionCode(env.action)
        self.head = Head(env.action, sigma="state")
        width = width_of(self.encoder, self.inputs)
        self.inverse = _model(2 * width, config.hidden, self.head.sizes.outputs)
        self.foretell = _model(width + self.code.width, config.hidden, width)

    def encode(self, observation: dict[str, Tensor]) -> Tensor:
        """Gives φ [N, width] of observations [N, ...]."""
        features: Tensor = self.encoder(self.inputs(observation))
        return features

    def around(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Gives φ before and after each step [T, B, width], and where the one after is known, [T, B] bool."""
        features = self.encode({name: x.flatten(0, 1) for name, x in batch.observation.items()})
        features = features.view(*batch.first.shape, -1)
        after, known = features[1:], ~batch.first[1:]
        if batch.final_index is not None:
            final = self.encode({name: padded(x) for name, x in batch.final.items()})[: len(batch.final_index)]
            after = after.flatten(0, 1).index_copy(0, batch.final_index, final).view_as(after)
            known = known.flatten().index_fill(0, batch.final_index, True).view_as(known)
        return features[:-1], after, known if batch.valid is None else known & batch.valid


def _model(width: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(orthogonal(nn.Linear(width, hidden)), nn.ReLU(), orthogonal(nn.Linear(hidden, outputs), 1.0))


class Curiosity:
    """See the module; one instance owns the models and their optimiser."""

    def __init__(self, config: CuriosityConfig, env: EnvSpec, seed: int, device: torch.device) -> None:
        self._config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._models = _Models(config, env).to(device)
            except ConfigError as error:  # which speaks of the section `network`
                raise ConfigError(f"algorithm.curiosity.{error.message}", error.remedy) from error
        self._optimizer = FlatOptimizer(OptimizerConfig(lr=config.lr, max_grad_norm=10.0), self._models)

    def learn(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Gives the intrinsic reward [T, B] of a batch and metrics, and takes one step on it."""
        models, share = self._models, self._config.forward_weight
        before, after, known = models.around(batch)
        told = models.head.distribution(models.inverse(torch.cat([before, after], -1)))
        code = models.code(batch.action.flatten(0, 1)).view(*batch.reward.shape, -1)
        foretold = models.foretell(torch.cat([before.detach(), code], -1))
        error = 0.5 * (foretold - after.detach()).square().sum(-1)
        forward_loss = masked_mean(error, known)
        inverse_loss = -masked_mean(told.log_prob(batch.action), known)
        loss = (1.0 - share) * inverse_loss + share * forward_loss
        norm = self._optimizer.step(loss, self._config.lr, ranks.weight(error, known))
        models.inputs.fold(batch.acted_on(), batch.online_steps())
        # Not by a product: what is not known may be anything.
        intrinsic = torch.where(known, self._config.weight * error.detach(), 0.0)
        metrics = {"intrinsic_reward": masked_mean(intrinsic, known), "inverse_loss": inverse_loss}
        return intrinsic, {**metrics, "forward_loss": forward_loss, "curiosity_grad_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        """Gives the models' parameters, what their inputs know of observations, and the optimiser."""
        inputs = {name: x.clone() for name, x in self._models.inputs.state_dict().items()}
        return {"parameters": self._optimizer.flat.clone(), "inputs": inputs, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of the same settings."""
        self._optimizer.flat.copy_(state["parameters"])
        self._models.inputs.load_state_dict(state["inputs"])
        self._optimizer.load_state_dict(state["optimizer"])
