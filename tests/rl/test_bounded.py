import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as reference

from common.rl.bounded import Beta, Bounds, TanhNormal, has_bounds

LOW, HIGH = (-1.0, 0.0, -3.0), (1.0, 10.0, 5.0)
WIDTH = torch.tensor([2.0, 10.0, 8.0], dtype=torch.float64)


def bounds() -> Bounds:
    return Bounds(LOW, HIGH, (3,)).double()


@pytest.mark.parametrize(
    ("low", "high", "made"),
    [
        ((-1.0, 0.0), (1.0, 10.0), True),
        ((-1.0, 2.0), (1.0, 2.0), False),
        ((-1.0, 1.0), (1.0, -1.0), False),
        ((-1.0, 0.0), (1.0, math.inf), False),
        ((-1e38,), (1e38,), True),
        ((-3e38,), (3e38,), False),
        ((2e38,), (3e38,), False),
        ((1e39,), (1e40,), False),
        ((1.0,), (1.0 + 1e-9,), False),
    ],
)
def test_bounds_are_finite_and_apart_in_float32(low: tuple[float, ...], high: tuple[float, ...], made: bool) -> None:
    assert has_bounds(low, high) is made
    if made:
        ends = Bounds(low, high, (len(low),)).outward(torch.tensor([[-1.0], [1.0]]).expand(2, len(low)))
        torch.testing.assert_close(ends, torch.tensor([low, high]))


def double(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def tanh_normal(mean: Tensor, log_std: Tensor) -> TanhNormal:
    return TanhNormal(mean, log_std, bounds())


def theirs_tanh(mean: Tensor, log_std: Tensor) -> Any:
    transforms: list[reference.Transform] = [
        reference.transforms.TanhTransform(cache_size=1),
        reference.transforms.AffineTransform(torch.tensor(LOW).double() + WIDTH / 2, WIDTH / 2, cache_size=1),
    ]
    return reference.TransformedDistribution(reference.Normal(mean, log_std.exp()), transforms)


def theirs_beta(alpha: Tensor, beta: Tensor) -> Any:
    scale = reference.transforms.AffineTransform(torch.tensor(LOW).double(), WIDTH)
    return reference.TransformedDistribution(reference.Beta(alpha, beta), [scale])


def test_a_tanh_normal_gives_a_literal_density() -> None:
    p = tanh_normal(double(0.0, 0.0, 0.0), double(0.0, 0.0, 0.0))
    # In the middle of the bounds: the normal's density at 0, over the half width, three times.
    expected = -1.5 * math.log(2 * math.pi) - math.log(1.0 * 5.0 * 4.0)
    assert p.log_prob(double(0.0, 5.0, 1.0)).item() == pytest.approx(expected)
    assert p.mode().tolist() == [[0.0, 5.0, 1.0]]
    z = math.atanh(0.5)
    one = -0.5 * z * z - 0.5 * math.log(2 * math.pi) - math.log(1 - 0.25)
    assert p.log_prob(double(0.5, 5.0, 1.0)).item() == pytest.approx(
        one - math.log(2 * math.pi) - math.log(20.0), rel=1e-6
    )


def test_a_tanh_normal_agrees_with_torchs_own_in_float64() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.randn(50, 3).double(), torch.randn(50, 3).double() * 0.3
    p, theirs = tanh_normal(mean, log_std), theirs_tanh(mean, log_std)
    action = p.sample(torch.rand(50, 3).double().clamp(1e-3, 1 - 1e-3))
    torch.testing.assert_close(p.log_prob(action), theirs.log_prob(action).sum(-1), atol=1e-6, rtol=1e-6)
    q = tanh_normal(mean + 1.0, log_std * 0.5)
    expected = reference.kl_divergence(
        reference.Normal(mean, log_std.exp()), reference.Normal(mean + 1.0, (log_std * 0.5).exp())
    )
    torch.testing.assert_close(p.kl(q), expected.sum(-1))


def test_a_tanh_normals_density_is_finite_at_its_bounds_and_exact_beside_its_sample() -> None:
    p = tanh_normal(double(9.0, -9.0, 0.0), double(0.0, 0.0, 0.0))
    action, log_prob = p.sample_with_log_prob(double(0.5, 0.5, 0.5))
    # At z = 9: log(1 - tanh²) = 2 (log 2 - 9) to nine digits.
    slope = 2 * 2 * (math.log(2) - 9.0)
    assert log_prob.item() == pytest.approx(-1.5 * math.log(2 * math.pi) - slope - math.log(20.0), abs=1e-6)
    assert p.log_prob(double(1.0, 0.0, 1.0)).isfinite().all()
    assert action[0, 0].item() == pytest.approx(1.0)


def test_a_tanh_normals_sample_is_differentiable() -> None:
    mean = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    action, _ = TanhNormal(mean, torch.zeros(3).double(), bounds()).sample_with_log_prob(double(0.5, 0.5, 0.5))
    (gradient,) = torch.autograd.grad(action.sum(), mean)
    assert gradient.tolist() == [[1.0, 5.0, 4.0]]


def test_the_gradients_of_a_tanh_normals_sample_and_of_its_density_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    mean, log_std, free, u = torch.randn(4, 3), torch.randn(4, 3) * 0.5, torch.randn(3) * 0.5, torch.rand(4, 3)
    for std in (log_std, free):
        wrt = [x.double().requires_grad_() for x in (mean, std)]
        assert torch.autograd.gradcheck(lambda *of: TanhNormal(*of, bounds()).sample_with_log_prob(u.double()), wrt)


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 2.0])
def test_a_tanh_normals_entropy_is_that_of_its_samples(std: float) -> None:
    n = 200_000
    u = ((torch.arange(n).double() + 0.5) / n)[:, None].expand(n, 3)
    mean, log_std = double(0.0, 0.7, -2.0), torch.full((1, 3), math.log(std)).double()
    _, log_prob = tanh_normal(mean.expand(n, 3), log_std).sample_with_log_prob(u)
    assert tanh_normal(mean, log_std).entropy().item() == pytest.approx(-log_prob.mean().item(), abs=3e-3)


def test_a_beta_gives_a_literal_density_mode_and_entropy() -> None:
    # Beta(2, 2) is 6 x (1 - x), Beta(1, 1) is flat, Beta(3, 1) is 3 x².
    p = Beta(double(2.0, 1.0, 3.0), double(2.0, 1.0, 1.0), bounds())
    expected = math.log(6 * 0.25 * 0.75 / 2.0) + math.log(1 / 10.0) + math.log(3 * 0.25 / 8.0)
    assert p.log_prob(double(-0.5, 7.0, 1.0)).item() == pytest.approx(expected)
    assert p.mode()[0, [0, 2]].tolist() == pytest.approx([0.0, 5.0])
    flat = Beta(double(1.0, 1.0, 1.0), double(1.0, 1.0, 1.0), bounds())
    assert flat.entropy().item() == pytest.approx(math.log(2.0 * 10.0 * 8.0))


def test_a_beta_agrees_with_torchs_own_in_float64() -> None:
    torch.manual_seed(0)
    a, b, c, d = (1.0 + torch.rand(4, 50, 3).double() * 30.0).unbind(0)
    p, q, theirs = Beta(a, b, bounds()), Beta(c, d, bounds()), theirs_beta(a, b)
    action = theirs.sample()
    torch.testing.assert_close(p.log_prob(action), theirs.log_prob(action).sum(-1), atol=1e-6, rtol=1e-6)
    plain: Any = reference.Beta(a, b)
    torch.testing.assert_close(p.entropy(), (plain.entropy() + WIDTH.log()).sum(-1))
    kl = reference.kl_divergence(plain, reference.Beta(c, d))
    torch.testing.assert_close(p.kl(q), kl.sum(-1))


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.2, 5.0), (40.0, 3.0), (900.0, 1000.0)])
def test_beta_samples_follow_the_beta_distribution(alpha: float, beta: float) -> None:
    n = 60_000
    box = Bounds((0.0,), (1.0,), (1,))
    u = torch.rand(n, Beta.noise, generator=torch.Generator().manual_seed(3)).clamp(2.0**-24, 1 - 2.0**-24)
    x = Beta(torch.full((n, 1), alpha), torch.full((n, 1), beta), box).sample(u).flatten().double()
    mean = alpha / (alpha + beta)
    std = math.sqrt(mean * (1 - mean) / (alpha + beta + 1))
    assert x.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))
    assert x.std().item() == pytest.approx(std, rel=0.015)
    # Kolmogorov-Smirnov against the distribution function, by quadrature of the density.
    grid = torch.linspace(1e-6, 1 - 1e-6, 20_001).double()
    one = Beta(torch.full((1,), alpha).double(), torch.full((1,), beta).double(), box.double())
    cdf = torch.cumulative_trapezoid(one.log_prob(grid[:, None]).exp(), grid)
    empirical = torch.searchsorted(x.sort().values, grid[1:]) / n
    assert (cdf - empirical).abs().max().item() < 1.95 / math.sqrt(n)


def test_the_same_noise_gives_the_same_beta_sample_whatever_stands_beside_it() -> None:
    u = torch.rand(5, Beta.noise * 3, generator=torch.Generator().manual_seed(0)).double()
    a, b = torch.linspace(1.0, 9.0, 15).reshape(5, 3).double(), torch.full((5, 3), 2.0).double()
    together = Beta(a, b, bounds()).sample(u)
    alone = Beta(a[3:4], b[3:4], bounds()).sample(u[3:4])
    torch.testing.assert_close(together[3:4], alone)


def test_a_time_major_batch_keeps_its_axes() -> None:
    box = Bounds((-1.0,) * 2, (1.0,) * 2, (2, 1))
    one, other = torch.ones(5, 3, 2), torch.ones(5, 3, 2)
    for p in (TanhNormal(one, other, box), Beta(one, other + 1.0, box)):
        assert p.mode().shape == (5, 3, 2, 1)
        assert p.log_prob(torch.zeros(5, 3, 2, 1)).shape == (5, 3)
        assert p.entropy().shape == (5, 3)
        assert p.parameters().shape == (5, 3, 4)
