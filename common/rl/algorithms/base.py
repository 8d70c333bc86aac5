"""What all algorithms share: the optimiser and its settings, schedules, and what a learner may ask of an algorithm.

Knows no loss. The parameters live in one flat tensor, so that clipping and stepping cost a dozen operations however
many layers there are: on small networks torch.optim's bookkeeping costs more than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from common.errors import ConfigError, HeadraceError
from common.rl import ranks
from common.rl.actor import Actor
from common.types import EnvSpec

Batches = Literal["unrolls", "transitions", "sequences"]
_ADAM_BETAS = (0.9, 0.999)
_EPS = 1e-5


class NonFiniteUpdate(HeadraceError):
    """A loss or gradient was not finite; the parameters and the algorithm are as before the batch."""

    code = "non_finite"


class OptimizerConfig(BaseModel):
    """The optimiser's settings; one that is not set takes the algorithm's default. `alpha` is RMSProp's decay."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["adam", "rmsprop"] = "adam"
    lr: float = Field(3e-4, gt=0)
    eps: float = Field(_EPS, gt=0)
    alpha: float = Field(0.99, gt=0, lt=1)
    max_grad_norm: float = Field(0.5, gt=0)
    lr_schedule: Literal["constant", "linear"] = "constant"

    def over(self, defaults: OptimizerConfig) -> OptimizerConfig:
        """Gives `defaults` with what was set here laid over them; raises ConfigError for what does nothing then.

        An epsilon is one optimiser's: RMSProp's 0.01 would damp Adam. Another than the defaults' has 1e-5.
        """
        own = self.model_dump(exclude_unset=True)
        others = {} if own.get("name", defaults.name) == defaults.name else {"eps": _EPS}
        laid = defaults.model_copy(update={**others, **own})
        if "alpha" in own and laid.name == "adam":
            text = f"learner.alpha={self.alpha} does nothing: the optimizer is adam"
            raise ConfigError(text, "leave it out, or set learner.optimizer to rmsprop")
        return laid


def scheduled(value: float, schedule: Literal["constant", "linear"], progress: float) -> float:
    """Gives the value at `progress` (0..1) of the job: constant, or falling linearly to 0 at the end."""
    return value if schedule == "constant" else value * max(0.0, 1.0 - progress)


class Algorithm(Protocol):
    """What a learner needs of an algorithm, and an inference-server of its class.

    `algorithm` is the config's section of that name, less `name`. `batches` says what a table must hand the learner.
    After each update `priorities` are those of the items that were drawn, float32 [n]; None: it gives none. One that
    corrects for steps of any age says `mixes = True`, and may be given stored unrolls among the new ones; one that says
    `synchronous = True` is refused unrolls of older policies.
    """

    batches: ClassVar[Batches]
    priorities: Tensor | None

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> Actor:
        """Builds what acts, with initial weights that depend on `seed` alone; the learner trains this very object."""

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, actor: Actor, seed: int) -> None:
        """Takes what `make_actor` made, already on its device."""

    def learn(self, batch: Any, progress: float) -> dict[str, float]:
        """Trains on a batch, Transitions or a Batch as `batches` says, and gives its metrics.

        Raises NonFiniteUpdate, having changed nothing.
        """

    def acting(self, steps: int, progress: float) -> dict[str, float]:
        """Gives the scalars that acting needs after `steps` of all environments, at `progress` (0..1) of the job."""

    def state_dict(self) -> dict[str, Any]:
        """Gives all that a resume needs besides the actor: nested dicts of tensors and scalars."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""


def numbers_of(scalars: Mapping[str, Tensor], weight: Tensor | float = 1.0) -> dict[str, float]:
    """Gives scalar tensors as numbers, of several ranks the means by `weight`; NonFiniteUpdate if one is not finite.

    It is the only wait for the device in an update.
    """
    values = torch.stack([x.detach().float().reshape(()) for x in scalars.values()])
    # What is not finite on one rank is not in the mean: all raise, or none.
    metrics = dict(zip(scalars, ranks.mean(values, weight).tolist(), strict=True))
    if not all(map(math.isfinite, metrics.values())):
        raise NonFiniteUpdate(
            f"a loss or gradient of this batch is not finite: {metrics}; nothing has changed",
            "look for non-finite observations or rewards, or lower learner.lr",
        )
    return metrics


def flatten(parameters: Sequence[Tensor]) -> Tensor:
    """Gives a network's parameters as one flat tensor, and makes them views of it; its device is settled before."""
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    for p, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        p.data = part.view(p.shape)
    return flat


class FlatOptimizer:
    """Adam (Kingma and Ba 2015) or RMSProp (Tieleman and Hinton 2012) over a network's parameters, but for those that
    want no gradient, as one flat tensor.

    RMSProp adds epsilon to the root, as PyTorch's does; A3C (Mnih et al. 2016) adds it under the root.

    The network's parameters become views of that tensor: move the network to its device first. On several ranks a
    gradient is the mean of theirs, by one all-reduce.
    """

    def __init__(self, config: OptimizerConfig, network: nn.Module) -> None:
        self.config = config
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self.flat = flatten(self._parameters)
        self._mean = torch.zeros_like(self.flat)
        self._square = torch.zeros_like(self.flat)
        # Kept: memory that is allocated anew in every update costs more than the arithmetic on it.
        # The last element is the gradient's weight, where ranks share it.
        self._shared = self.flat.new_empty(self.flat.numel() + 1)
        self._gradient = self._shared[:-1]
        self._step = torch.zeros((), device=self.flat.device)
        self.steps = 0

    def rate(self, progress: float) -> float:
        """Gives the learning rate at `progress` (0..1) of the job."""
        return scheduled(self.config.lr, self.config.lr_schedule, progress)

    def step(self, loss: Tensor, lr: float, weight: Tensor | float = 1.0) -> Tensor:
        """Descends one step and gives the gradient's norm before clipping, a scalar tensor: nothing waits for it.

        `weight` is this rank's in the mean over all: how many steps its loss is a mean of.
        """
        gradient, norm = self.gradient(loss, weight)
        self.descend(gradient, norm, lr)
        return norm

    def gradient(self, loss: Tensor, weight: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Gives the flat gradient of a loss, until the next one is asked for, and its norm; nothing has changed yet."""
        gradients = torch.autograd.grad(loss, self._parameters)
        gradient = torch.cat([g.reshape(-1) for g in gradients], out=self._gradient)
        if ranks.size() > 1:
            gradient.mul_(weight)
            self._shared[-1] = weight
            gradient.div_(ranks.total(self._shared)[-1].clamp(min=1.0))
        return gradient, torch.linalg.vector_norm(gradient)

    def descend(self, gradient: Tensor, norm: Tensor, lr: float) -> None:
        """Clips what `gradient` gave, in place, and descends one step along it."""
        bound = self.config.max_grad_norm
        # On the CPU nothing waits for a look at the norm, and few steps are clipped.
        if norm.device.type != "cpu" or norm.item() > bound:
            gradient.mul_((bound / (norm + 1e-6)).clamp_(max=1.0))
        self.steps += 1
        (self._adam if self.config.name == "adam" else self._rmsprop)(gradient, lr)

    def _adam(self, gradient: Tensor, lr: float) -> None:
        # One pass over memory; torch.optim calls the same, behind twenty times its cost on a small network.
        self._step.fill_(self.steps)
        torch._fused_adam_(
            [self.flat],
            [gradient],
            [self._mean],
            [self._square],
            [],
            [self._step],
            lr=lr,
            beta1=_ADAM_BETAS[0],
            beta2=_ADAM_BETAS[1],
            weight_decay=0.0,
            eps=self.config.eps,
            amsgrad=False,
            maximize=False,
        )

    def _rmsprop(self, gradient: Tensor, lr: float) -> None:
        self._square.mul_(self.config.alpha).addcmul_(gradient, gradient, value=1.0 - self.config.alpha)
        self.flat.addcdiv_(gradient, self._square.sqrt().add_(self.config.eps), value=-lr)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "mean": self._mean.clone(), "square": self._square.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self._mean.copy_(state["mean"])
        self._square.copy_(state["square"])
