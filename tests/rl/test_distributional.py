import math

import numpy as np
import pytest
import torch

from common.rl.ops.distributional import kl_divergence, project, quantile_huber

SUPPORT = torch.tensor([-1.0, 0.0, 1.0])
HALVES = torch.tensor([[0.25, 0.5, 0.25]])


def projected(reward: float, discount: float) -> list[float]:
    return project(HALVES, torch.tensor([reward]), torch.tensor([discount]), SUPPORT)[0].tolist()


def test_mass_between_two_atoms_is_shared_by_nearness() -> None:
    # -1, 0, 1 go to 0, 0.5 and 1
    assert projected(0.5, 0.5) == [0.0, 0.5, 0.5]
    # and to 0.25, 0.25, 0.25
    assert projected(0.25, 0.0) == [0.0, 0.75, 0.25]


def test_mass_that_meets_an_atom_goes_to_it_whole() -> None:
    assert projected(0.0, 1.0) == [0.25, 0.5, 0.25]
    assert projected(0.0, 0.0) == [0.0, 1.0, 0.0]
    assert projected(1.0, 0.0) == [0.0, 0.0, 1.0]


def test_what_leaves_the_support_goes_to_its_edge() -> None:
    assert projected(1.0, 1.0) == [0.0, 0.25, 0.75]
    assert projected(-9.0, 1.0) == [1.0, 0.0, 0.0]


def slow_projection(p: list[float], reward: float, discount: float, low: float, high: float) -> list[float]:
    """Bellemare et al.'s loop, with the whole b put where it belongs."""
    k = len(p)
    spacing = (high - low) / (k - 1)
    found = [0.0] * k
    for j in range(k):
        b = (min(max(reward + discount * (low + j * spacing), low), high) - low) / spacing
        below, above = math.floor(b), math.ceil(b)
        if below == above:
            found[below] += p[j]
        else:
            found[below] += p[j] * (above - b)
            found[above] += p[j] * (b - below)
    return found


def test_the_projection_agrees_with_a_slow_loop() -> None:
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(51), 16)
    reward, discount = draw.normal(scale=5.0, size=16), draw.choice([0.0, 0.97, 1.0], 16)
    support = torch.linspace(-10.0, 10.0, 51, dtype=torch.float64)
    found = project(torch.tensor(p), torch.tensor(reward), torch.tensor(discount), support)
    expected = [slow_projection(list(p[i]), reward[i], discount[i], -10.0, 10.0) for i in range(16)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(-1).numpy(), 1.0, rtol=1e-12)


def test_a_divergence_on_literals() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    target = torch.tensor([[1.0, 0.0], [0.75, 0.25]])
    assert kl_divergence(target, logits).tolist() == pytest.approx([math.log(2.0), 0.0], abs=1e-7)


def test_the_quantile_loss_on_literals() -> None:
    # quantile 1, at 1/4: errors 1 and 5, a quarter of (0.5 + 4.5) / 2
    # quantile 3, at 3/4: errors -1 and 3, (0.25 · 0.5 + 0.75 · 2.5) / 2
    quantiles, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 6.0]])
    assert quantile_huber(quantiles, target, 1.0).tolist() == [0.625 + 1.0]
    # beyond 2: 5 counts 8 and 3 counts 4; divided by 2
    assert quantile_huber(quantiles, target, 2.0).tolist() == [(1.0625 + 1.5625) / 2]


def test_the_quantile_loss_agrees_with_a_slow_loop() -> None:
    draw = np.random.default_rng(0)
    quantiles, target = draw.normal(size=(4, 7)), draw.normal(size=(4, 5), scale=2.0)
    expected = np.zeros(4)
    for n in range(4):
        for i in range(7):
            for j in range(5):
                u = target[n, j] - quantiles[n, i]
                size = 0.5 * u * u if abs(u) <= 1.0 else abs(u) - 0.5
                expected[n] += abs((i + 0.5) / 7 - (u < 0)) * size / 5
    found = quantile_huber(torch.tensor(quantiles), torch.tensor(target), 1.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def plain_quantile_huber(quantiles: torch.Tensor, target: torch.Tensor, threshold: float) -> torch.Tensor:
    """The definition, for autograd to differentiate."""
    k = quantiles.shape[-1]
    middle = (torch.arange(k, dtype=quantiles.dtype) + 0.5) / k
    error = target.unsqueeze(1) - quantiles.unsqueeze(-1)
    weight = (middle.unsqueeze(-1) - (error.detach() < 0.0).to(error.dtype)).abs()
    size = error.abs()
    near = size.clamp(max=threshold)
    return (weight * near * (size - 0.5 * near)).mean(-1).sum(-1) / threshold


@pytest.mark.parametrize("threshold", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("k", "m"), [(1, 1), (8, 5), (32, 200)])
def test_the_quantile_loss_and_its_slope_are_the_definitions(threshold: float, k: int, m: int) -> None:
    draw = torch.Generator().manual_seed(k)
    quantiles = torch.randn(6, k, generator=draw, dtype=torch.float64, requires_grad=True)
    target = torch.randn(6, m, generator=draw, dtype=torch.float64) * 2.0
    each = torch.randn(6, generator=draw, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        theta, samples = quantiles.detach().to(dtype).requires_grad_(), target.to(dtype)
        ours, plain = (loss(theta, samples, threshold) for loss in (quantile_huber, plain_quantile_huber))
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
        slopes = [torch.autograd.grad(loss @ each.to(dtype), theta)[0] for loss in (ours, plain)]
        torch.testing.assert_close(*slopes, rtol=tolerance, atol=tolerance)


def test_the_quantile_losss_slope_is_that_of_small_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    quantiles = torch.randn(3, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda theta: quantile_huber(theta, target, 1.0), (quantiles,))


def test_the_quantile_losss_slope_on_literals() -> None:
    # at 1/4: errors 1 and 5, both slope 1; at 3/4: -1, a quarter, and 3, three quarters; halved, against the quantile
    quantiles, target = torch.tensor([[1.0, 3.0]], requires_grad=True), torch.tensor([[2.0, 6.0]])
    (slope,) = torch.autograd.grad(quantile_huber(quantiles, target, 1.0).sum(), quantiles)
    assert slope.tolist() == [[-0.25, -0.25]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_of_a_sample_that_is_not_finite_is_not(bad: float) -> None:
    found = quantile_huber(torch.zeros(2, 3), torch.tensor([[0.0, 1.0], [bad, 1.0]]), 1.0)
    assert torch.isfinite(found).tolist() == [True, False]


def test_descending_the_quantile_loss_finds_the_quantiles() -> None:
    samples = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64).unsqueeze(0)
    quantiles = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    for _ in range(500):
        (slope,) = torch.autograd.grad(quantile_huber(quantiles, samples, 0.01).sum(), quantiles)
        quantiles.data.sub_(slope, alpha=0.02)
    assert quantiles[0].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.02)
