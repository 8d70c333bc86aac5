"""Noise in a Box comes from the step's uniforms alone; what drifts does so at the rate that is set."""

import math

import numpy as np
import pytest
import torch

from common.rl.action_noise import MEMORY, ActionNoiseConfig, memory_spec, noise_scalars, perturbed, uniform
from common.rl.actor import Seen
from common.rl.noise import uniforms

# The normal that this share of all lies below.
ONE_SIGMA = 0.8413447


def seen(noise: torch.Tensor, memory: torch.Tensor | None = None, first: bool = False) -> Seen:
    n = noise.shape[0]
    state = {} if memory is None else {MEMORY: memory}
    return Seen({}, torch.full((n,), first), torch.zeros(n), state, noise, torch.arange(n))


def test_gaussian_noise_is_the_scale_times_the_normal_of_each_uniform() -> None:
    config = ActionNoiseConfig()
    y, state = perturbed(
        torch.tensor([[0.25, 0.95, -0.5]]), seen(torch.tensor([[ONE_SIGMA, ONE_SIGMA, 0.5]])), config, 0.1
    )
    assert y.tolist()[0] == pytest.approx([0.35, 1.0, -0.5], abs=1e-6)
    assert state == {}
    assert memory_spec(config, 3) == ()


def test_drifting_noise_keeps_what_it_does_not_forget() -> None:
    config = ActionNoiseConfig(kind="ornstein_uhlenbeck", theta=0.15)
    u, memory = torch.tensor([[ONE_SIGMA]]), torch.tensor([[0.4]])
    y, state = perturbed(torch.zeros(1, 1), seen(u, memory), config, 0.2)
    assert y.item() == pytest.approx(0.54, abs=1e-6)
    assert state[MEMORY].item() == pytest.approx(0.54, abs=1e-6)
    y, state = perturbed(torch.zeros(1, 1), seen(u, memory, first=True), config, 0.2)
    assert y.item() == pytest.approx(0.2, abs=1e-6)


def test_what_is_cut_off_an_action_is_not_cut_off_the_memory() -> None:
    config = ActionNoiseConfig(kind="ornstein_uhlenbeck")
    y, state = perturbed(torch.tensor([[0.9]]), seen(torch.tensor([[0.5]]), torch.tensor([[1.0]])), config, 0.2)
    assert y.item() == 1.0
    assert state[MEMORY].item() == pytest.approx(0.85)


def test_drifting_noise_has_the_spread_and_the_memory_of_its_process() -> None:
    config = ActionNoiseConfig(kind="ornstein_uhlenbeck", theta=0.15)
    memory = torch.zeros(4000, 1)
    rows = []
    for step in range(60):
        u = torch.from_numpy(uniforms(3, (0, 4000), step, 1))
        memory = perturbed(torch.zeros(4000, 1), seen(u, memory), config, 0.2)[1][MEMORY]
        rows.append(memory[:, 0].numpy())
    last = np.stack(rows[40:])
    # 0.2 / √(1 - 0.85²)
    assert last.std() == pytest.approx(0.37966, rel=0.02)
    assert last.mean() == pytest.approx(0.0, abs=0.01)
    for lag in (1, 5):
        together = float((last[lag:] * last[:-lag]).mean())
        assert together / last.var() == pytest.approx(0.85**lag, abs=0.02)


def test_uniform_actions_fill_the_box() -> None:
    assert uniform(torch.tensor([[0.0, 0.5, 0.75]])).tolist() == [[-1.0, 0.0, 0.5]]


def test_the_scalars_follow_the_job() -> None:
    falling = ActionNoiseConfig(scale=0.4, schedule="linear")
    assert noise_scalars(falling, 0.75, 0) == {"noise": pytest.approx(0.1), "uniform": 1.0}
    assert noise_scalars(ActionNoiseConfig(), 0.75, 3) == {"noise": 0.1, "uniform": 0.0}
    assert math.isclose(noise_scalars(falling, 1.0, 1)["noise"], 0.0)
