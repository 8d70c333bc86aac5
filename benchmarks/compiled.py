"""What compiling a whole update would bring: Headrace's SAC beside the same update as a lean loop, eager and compiled.

Observations of 17, actions of 6, MLPs of 256-256, batches of 256, one thread. The loop has no metrics, no importance
weights, no temperature to learn and no table to draw from, so it is the lower bound of what eager torch costs.

    python -m benchmarks.compiled [--repeat 5] [--updates 60]
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.page import spread
from benchmarks.replay import ACTION, BATCH, OBSERVATION
from benchmarks.updates import PER_REQUEST, sac_turn
from common.allocator import keep_freed_memory

HIDDEN, TEMPERATURE, TAU = 256, 0.2, 0.005
Gradients = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    between = (nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
    return nn.Sequential(*between, nn.Linear(HIDDEN, outputs))


class Lean:
    """SAC's update with torch's own modules and optimisers, on one batch of random transitions."""

    def __init__(self) -> None:
        self._actor = _mlp(OBSERVATION, 2 * ACTION)
        self._critics = nn.ModuleList([_mlp(OBSERVATION + ACTION, 1) for _ in range(2)])
        self._targets = copy.deepcopy(self._critics).requires_grad_(False)
        self._parameters = [list(self._critics.parameters()), list(self._actor.parameters())]
        self._optimizers = [torch.optim.Adam(own, 3e-4, fused=True) for own in self._parameters]
        self._now, self._after = torch.randn(BATCH, OBSERVATION), torch.randn(BATCH, OBSERVATION)
        self._action, self._reward = torch.randn(BATCH, ACTION).tanh(), torch.randn(BATCH)
        self._noise = torch.randn(2, BATCH, ACTION)

    def _policy(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self._actor(observation).chunk(2, -1)
        log_std = log_std.clamp(-5.0, 2.0)
        before = mean + log_std.exp() * noise
        inside = 2.0 * (math.log(2.0) - before - functional.softplus(-2.0 * before))
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi) - inside
        return before.tanh(), density.sum(-1)

    def gradients(self) -> Gradients:
        """What is compiled: both losses, and their gradients."""
        with torch.no_grad():
            action, log_prob = self._policy(self._after, self._noise[0])
            least = torch.stack([target(torch.cat([self._after, action], -1)) for target in self._targets]).amin(0)
            y = self._reward + 0.99 * (least.squeeze(-1) - TEMPERATURE * log_prob)
        given = torch.cat([self._now, self._action], -1)
        critic_loss = sum((critic(given).squeeze(-1) - y).square().mean() for critic in self._critics)
        of_critics, of_actor = self._parameters
        # Now, not with the actor's: what is compiled can be gone back through once.
        critic_gradient = torch.autograd.grad(critic_loss, of_critics)
        action, log_prob = self._policy(self._now, self._noise[1])
        least = torch.stack([critic(torch.cat([self._now, action], -1)) for critic in self._critics]).amin(0)
        actor_loss = (TEMPERATURE * log_prob - least.squeeze(-1)).mean()
        return critic_gradient, torch.autograd.grad(actor_loss, of_actor)

    def update(self, gradients: Callable[[], Gradients]) -> None:
        """Takes one step by `gradients`, which are compiled or not."""
        for parameters, found, optimizer in zip(self._parameters, gradients(), self._optimizers, strict=True):
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self._targets.parameters()), self._parameters[0], TAU)


def _milliseconds(turn: Callable[[], object], turns: int, updates: int) -> float:
    """Processor time of an update, the median of `turns`: these machines are shared."""
    took = []
    for _ in range(turns):
        began = time.process_time()
        turn()
        took.append(1e3 * (time.process_time() - began) / updates)
    return statistics.median(took)


def report(repeat: int, updates: int) -> str:
    """Measures in turn; gives Markdown."""
    keep_freed_memory()
    torch.set_num_threads(1)
    lean = Lean()
    began, compiled = time.monotonic(), torch.compile(lean.gradients)
    lean.update(compiled)
    seconds = time.monotonic() - began
    subjects: dict[str, tuple[Callable[[], object], int]] = {
        "Headrace, draw and metrics included": (sac_turn(), PER_REQUEST),
        "a lean loop, eager": (partial(lean.update, lean.gradients), 1),
        "a lean loop, compiled": (partial(lean.update, compiled), 1),
    }
    rounds = [
        {name: _milliseconds(turn, updates // n, n) for name, (turn, n) in subjects.items()} for _ in range(repeat)
    ]
    first = next(iter(subjects))
    lines = [
        f"Compiling took {seconds:.0f} s.",
        "",
        "| SAC | ms of a core per update | of Headrace's |",
        "|---|---|---|",
    ]
    for name in subjects:
        median = statistics.median(own[name] for own in rounds)
        lines.append(f"| {name} | {median:.1f} | {spread([own[name] / own[first] for own in rounds])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--updates", type=int, default=60, help="of each measurement")
    arguments = parser.parse_args()
    print(report(arguments.repeat, arguments.updates))


if __name__ == "__main__":
    main()
