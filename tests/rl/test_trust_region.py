import math

import numpy as np
import pytest
import torch

from common.rl.distributions import Categorical, DiagNormal, MultiCategorical
from common.rl.ops.trust_region import implied_kl, within

INFINITE = float("inf")


def categorical(*probabilities: float) -> Categorical:
    return Categorical(torch.tensor([probabilities], dtype=torch.float64).log())


def test_the_kl_of_the_implied_policy_on_literals() -> None:
    # min(μ, π) is (1/2, 1/10): π̃ is (5/6, 1/6)
    expected = 0.5 * math.log(0.5 * 6 / 5) + 0.5 * math.log(0.5 * 6)
    assert implied_kl(categorical(0.5, 0.5), categorical(0.9, 0.1), 1.0, 1).item() == pytest.approx(expected)
    # min(2μ, π) is (1/2, 1/5)
    wider = 0.5 * math.log(0.5 * 7 / 5) + 0.5 * math.log(0.5 * 7 / 2)
    assert implied_kl(categorical(0.5, 0.5), categorical(0.9, 0.1), 2.0, 1).item() == pytest.approx(wider)


def test_a_policy_is_at_no_distance_from_its_own_data() -> None:
    same = categorical(0.2, 0.3, 0.5)
    assert implied_kl(same, same, 1.0, 1).item() == pytest.approx(0.0, abs=1e-12)
    normal = DiagNormal(torch.zeros(1, 2), torch.zeros(2), (2,))
    assert implied_kl(normal, normal, 1.0, 2).item() == pytest.approx(0.0, abs=1e-6)


def test_actions_that_the_policy_never_takes_add_nothing() -> None:
    impossible = implied_kl(categorical(0.5, 0.5, 0.0), categorical(0.9, 0.1, 0.0), 1.0, 1)
    assert impossible.item() == pytest.approx(0.5 * math.log(1.8))
    assert implied_kl(categorical(1.0, 0.0), categorical(0.5, 0.5), 1.0, 1).item() == pytest.approx(0.0)


def test_independent_choices_come_near_the_joint_distribution() -> None:
    draw = torch.Generator().manual_seed(0)
    pi, mu = torch.randn(2, 1, 5, generator=draw, dtype=torch.float64)
    joint = [
        (a.log_softmax(-1)[0, :, None] + b.log_softmax(-1)[0, None]).reshape(1, 6)
        for a, b in (x.split([3, 2], -1) for x in (pi, mu))
    ]
    expected = implied_kl(Categorical(joint[0]), Categorical(joint[1]), 1.0, 1).item()
    parts = [MultiCategorical(x, (3, 2), (2,)) for x in (pi, mu)]
    assert implied_kl(parts[0], parts[1], 1.0, 2).item() == pytest.approx(expected, abs=0.05)


def test_normals_come_near_the_integral() -> None:
    pi = DiagNormal(torch.tensor([[0.5]]), torch.tensor([-0.5]), (1,))
    mu = DiagNormal(torch.tensor([[-0.3]]), torch.tensor([0.2]), (1,))
    x = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    log_pi = -0.5 * ((x - 0.5) / math.exp(-0.5)) ** 2 + 0.5 - 0.5 * math.log(2 * math.pi)
    log_mu = -0.5 * ((x + 0.3) / math.exp(0.2)) ** 2 - 0.2 - 0.5 * math.log(2 * math.pi)
    implied = torch.minimum(log_pi, log_mu)
    expected = torch.trapezoid(log_pi.exp() * (log_pi - implied), x) + torch.trapezoid(implied.exp(), x).log()
    assert implied_kl(pi, mu, 1.0, 1).item() == pytest.approx(expected.item(), abs=0.01)


@pytest.mark.parametrize(("rho", "expected"), [(1.0, 0.21503), (2.0, 0.09831), (4.0, 0.03125)])
def test_a_wider_cut_brings_the_implied_policy_nearer_for_normals_too(rho: float, expected: float) -> None:
    # N(1, 1) from the data of N(0, 1); by quadrature.
    pi, mu = (DiagNormal(torch.tensor([[mean]]), torch.zeros(1), (1,)) for mean in (1.0, 0.0))
    assert implied_kl(pi, mu, rho, 1).item() == pytest.approx(expected, abs=0.01)


def test_choices_that_another_policy_all_but_never_took_are_as_far_as_the_sum_says() -> None:
    # min(μ, π) is (e^-110, e^-120, 0), so that KL = 115 - log 2 - 110 + log(1 + e^-10).
    pi = MultiCategorical(torch.tensor([[0.0, 0.0, -200.0]]), (3,), (1,))
    mu = MultiCategorical(torch.tensor([[-110.0, -120.0, 0.0]]), (3,), (1,))
    assert implied_kl(pi, mu, 1.0, 1).item() == pytest.approx(5.0 - math.log(2.0), abs=1e-3)


@pytest.mark.parametrize("shift", [10.0, 20.0, 1000.0])
def test_normals_that_do_not_overlap_are_far_apart_and_not_trusted(shift: float) -> None:
    # KL = d²/2 + log 2Φ(-d/2) at d standard deviations, 35.6 nats at 10; of few points it is less.
    pi, mu = (DiagNormal(torch.tensor([[mean]]), torch.zeros(1), (1,)) for mean in (shift, 0.0))
    distance = implied_kl(pi, mu, 1.0, 1)
    assert 10.0 < distance.item() < shift * shift / 2.0
    assert not within(distance.expand(5, 1), 0.1, NONE, NONE, None).any()


def flags(*rows: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool).view(-1, 1)


NONE = flags(0, 0, 0, 0, 0)
FAR = torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0]).view(-1, 1)


def test_a_step_beyond_the_bound_takes_the_rest_of_its_episode_with_it() -> None:
    assert within(FAR, 1.0, NONE, NONE, None).flatten().tolist() == [True, False, False, False, False]
    assert within(FAR, 2.0, NONE, NONE, None).all()
    assert within(FAR, INFINITE, NONE, NONE, None).all()


@pytest.mark.parametrize("truncated", [False, True])
def test_the_next_episode_begins_afresh(truncated: bool) -> None:
    end = flags(0, 0, 1, 0, 0)
    ends = (NONE, end) if truncated else (end, NONE)
    assert within(FAR, 1.0, *ends, None).flatten().tolist() == [True, False, False, True, True]
    last_of_its_episode = flags(0, 1, 0, 0, 0)
    assert within(FAR, 1.0, last_of_its_episode, NONE, None).flatten().tolist() == [True, False, True, True, True]


def test_a_step_that_is_no_decision_cuts_nothing() -> None:
    assert within(FAR, 1.0, flags(1, 0, 0, 0, 0), NONE, flags(1, 0, 1, 1, 1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_agrees_with_a_loop(seed: int) -> None:
    draw = np.random.default_rng(seed)
    distance = draw.random((30, 6))
    term, trunc = draw.random((2, 30, 6)) < 0.15
    valid = draw.random((30, 6)) > 0.1
    expected = np.ones((30, 6), bool)
    for b in range(6):
        cut = False
        for t in range(30):
            cut = cut or (distance[t, b] > 0.8 and bool(valid[t, b]))
            expected[t, b] = not cut
            cut = cut and not (term[t, b] or trunc[t, b])
    tensors = [torch.from_numpy(x) for x in (term, trunc, valid)]
    np.testing.assert_array_equal(within(torch.from_numpy(distance), 0.8, *tensors).numpy(), expected)
