import math

import pytest
import torch

from common.rl.distributions import Categorical, DiagNormal, MultiCategorical, make_distribution, noise_size
from common.types import ActionSpec

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


@pytest.mark.parametrize(
    ("action", "size"),
    [
        (ActionSpec("discrete", "<i8", (), (4,)), 1),
        (ActionSpec("multi_discrete", "<i8", (3,), (2, 2, 5)), 3),
        (ActionSpec("box", "<f4", (2, 2), low=(-1.0,) * 4, high=(1.0,) * 4), 4),
    ],
)
def test_noise_size_counts_one_uniform_per_component(action: ActionSpec, size: int) -> None:
    assert noise_size(action) == size


def test_a_time_major_batch_keeps_its_axes() -> None:
    box = make_distribution(ActionSpec("box", "<f4", (2, 1)), torch.zeros(5, 3, 2), torch.zeros(2))
    assert box.mode().shape == (5, 3, 2, 1)
    assert box.log_prob(torch.zeros(5, 3, 2, 1)).shape == (5, 3)
    assert box.entropy().shape == (5, 3)
