import math
from typing import Any

import pytest
import torch
from torch import distributions as reference

from common.rl.distributions import LOWEST, Bernoulli, Categorical, DiagNormal, Joint, MultiCategorical

U = torch.arange(1, 20_000, dtype=torch.float32)[:, None] / 20_000


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_a_categorical_gives_literal_log_probability_entropy_and_kl() -> None:
    p, q = Categorical(logits(0.5, 0.25, 0.25)), Categorical(logits(0.25, 0.5, 0.25))
    assert p.log_prob(torch.tensor([1])).item() == pytest.approx(math.log(0.25))
    assert p.entropy().item() == pytest.approx(1.5 * math.log(2.0))
    assert p.kl(q).item() == pytest.approx(0.25 * math.log(2.0), rel=1e-5)
    assert p.mode().tolist() == [0]


def test_a_categorical_samples_by_inverse_cdf() -> None:
    p = Categorical(logits(0.2, 0.3, 0.5).expand(6, 3))
    u = torch.tensor([[1e-7], [0.19], [0.21], [0.49], [0.51], [1 - 2**-24]])
    assert p.sample(u).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_multi_categorical_sums_over_components_and_keeps_the_action_shape() -> None:
    flat = torch.cat([logits(0.5, 0.5), logits(0.2, 0.3, 0.5)], -1)
    p = MultiCategorical(flat, (2, 3), (1, 2))
    assert p.sample(torch.tensor([[0.7, 0.1]])).tolist() == [[[1, 0]]]
    assert p.mode()[0, 0, 1].item() == 2
    assert p.log_prob(torch.tensor([[[1, 2]]])).item() == pytest.approx(math.log(0.25))
    q = MultiCategorical(torch.cat([logits(0.5, 0.5), logits(0.3, 0.2, 0.5)], -1), (2, 3), (1, 2))
    assert p.entropy().item() == pytest.approx(math.log(2.0) + 1.0296530140645737, rel=1e-5)
    assert p.kl(q).item() == pytest.approx(0.1 * math.log(1.5), rel=1e-4)


def test_a_normal_gives_literal_log_probability_entropy_and_kl() -> None:
    p = DiagNormal(torch.tensor([[1.0, -1.0]]), torch.tensor([0.0, math.log(2.0)]), (2,))
    q = DiagNormal(torch.tensor([[0.0, -1.0]]), torch.zeros(2), (2,))
    assert p.log_prob(torch.tensor([[2.0, 1.0]])).item() == pytest.approx(-1.0 - math.log(2 * math.pi) - math.log(2.0))
    assert p.entropy().item() == pytest.approx(1.0 + math.log(2 * math.pi) + math.log(2.0))
    assert p.kl(q).item() == pytest.approx(0.5 + 1.5 - math.log(2.0))
    assert p.mode().tolist() == [[1.0, -1.0]]


def test_a_normal_samples_by_inverse_cdf() -> None:
    p = DiagNormal(torch.full((3, 1), 5.0), torch.tensor([math.log(2.0)]), (1,))
    u = torch.tensor([[0.5], [0.8413447], [0.0227501]])
    torch.testing.assert_close(p.sample(u), torch.tensor([[5.0], [7.0], [1.0]]), atol=1e-4, rtol=0)


def test_samples_over_all_quantiles_agree_with_log_probability() -> None:
    p = Categorical(logits(0.1, 0.6, 0.3).expand(U.shape[0], 3))
    frequency = p.sample(U).bincount(minlength=3) / U.shape[0]
    torch.testing.assert_close(frequency, torch.tensor([0.1, 0.6, 0.3]), atol=2e-4, rtol=0)
    normal = DiagNormal(torch.zeros(U.shape[0], 1), torch.zeros(1), (1,))
    assert -normal.log_prob(normal.sample(U)).mean().item() == pytest.approx(normal.entropy()[0].item(), abs=2e-3)


def test_the_lowest_logit_is_never_sampled_wherever_it_stands() -> None:
    u = torch.tensor([[2.0**-24], [1e-3], [0.5], [1 - 2**-24]])
    for forbidden in ([0], [1], [2], [0, 1], [1, 2], [0, 2]):
        raw = torch.tensor([0.3, -2.0, 1.7])
        raw[forbidden] = LOWEST
        p = Categorical(raw.expand(4, 3))
        assert set(p.sample(u).tolist()).isdisjoint(forbidden)
        assert p.log_probs.exp()[0, forbidden].tolist() == [0.0] * len(forbidden)


def test_rounding_never_reaches_a_last_choice_that_has_no_probability() -> None:
    raw = torch.randn(500, 60, generator=torch.Generator().manual_seed(0))
    raw[:, -1] = LOWEST
    p = Categorical(raw)
    # Else the edges' own sum would not be worth telling from 1.
    assert (p.log_probs.exp().cumsum(-1)[:, -1] < 1 - 2**-24).any()
    assert p.sample(torch.full((500, 1), 1 - 2**-24)).max().item() < 59


def test_a_bernoulli_gives_literal_log_probability_entropy_and_kl() -> None:
    p = Bernoulli(torch.tensor([[math.log(3.0), 0.0]]), (2, 1))
    q = Bernoulli(torch.tensor([[0.0, -math.log(3.0)]]), (2, 1))
    assert p.log_prob(torch.tensor([[[1], [0]]])).item() == pytest.approx(math.log(0.75 * 0.5))
    assert p.entropy().item() == pytest.approx(math.log(4) - 0.75 * math.log(3) + math.log(2))
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    second = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert p.kl(q).item() == pytest.approx(first + second)
    assert p.sample(torch.tensor([[0.74, 0.51]])).tolist() == [[[1], [0]]]
    assert p.mode().tolist() == [[[1], [0]]]


def test_a_switch_at_the_lowest_logit_stays_off_and_all_stays_finite() -> None:
    p, q = Bernoulli(torch.tensor([[LOWEST, 0.0]]), (2,)), Bernoulli(torch.tensor([[0.0, 0.0]]), (2,))
    assert p.sample(torch.full((1, 2), 2.0**-24)).tolist() == [[0, 1]]
    assert p.entropy().item() == pytest.approx(math.log(2.0))
    assert p.kl(q).item() == pytest.approx(math.log(2.0))


def test_a_joint_distribution_sums_its_parts_and_lays_their_actions_side_by_side() -> None:
    parts = (Categorical(logits(0.25, 0.75)), DiagNormal(torch.tensor([[1.0, 2.0]]), torch.zeros(2), (2, 1)))
    p = Joint(parts, [(), (2, 1)], [1, 2], torch.float64)
    action = p.sample(torch.tensor([[0.1, 0.5, 0.5]]))
    assert action.dtype == torch.float64
    assert action.tolist() == [[0.0, 1.0, 2.0]]
    assert p.mode().tolist() == [[1.0, 1.0, 2.0]]
    assert p.log_prob(action).item() == pytest.approx(math.log(0.25) - math.log(2 * math.pi))
    other = (Categorical(logits(0.5, 0.5)), DiagNormal(torch.tensor([[0.0, 2.0]]), torch.zeros(2), (2, 1)))
    q = Joint(other, [(), (2, 1)], [1, 2], torch.float64)
    assert p.kl(q).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5) + 0.5, rel=1e-5)
    assert p.entropy().item() == pytest.approx(math.log(4) - 0.75 * math.log(3) + 1 + math.log(2 * math.pi), rel=1e-5)


def _pair(name: str) -> tuple[Any, Any, Any, Any]:
    """Two of ours and the same two of torch's own, in float64, over [7, 3]."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 3, generator=draw, dtype=torch.float64) * 2 for _ in range(2))
    s, t = (torch.randn(7, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    if name == "categorical":
        return Categorical(a), Categorical(b), reference.Categorical(logits=a), reference.Categorical(logits=b)
    if name == "bernoulli":
        one, two = (reference.Independent(reference.Bernoulli(logits=x), 1) for x in (a, b))
        return Bernoulli(a, (3,)), Bernoulli(b, (3,)), one, two
    own, other = (reference.Independent(reference.Normal(m, d.exp()), 1) for m, d in ((a, s), (b, t)))
    return DiagNormal(a, s, (3,)), DiagNormal(b, t, (3,)), own, other


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "normal"])
def test_ours_agree_with_torchs_own_in_float64(name: str) -> None:
    p, q, mine, theirs = _pair(name)
    action = mine.sample()
    torch.testing.assert_close(p.log_prob(action), mine.log_prob(action))
    torch.testing.assert_close(p.entropy(), mine.entropy())
    torch.testing.assert_close(p.kl(q), reference.kl_divergence(mine, theirs))
