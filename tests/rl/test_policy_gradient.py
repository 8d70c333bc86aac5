import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from common.rl.ops import policy_gradient as losses


def test_the_clip_binds_only_where_moving_further_would_pay() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    # 1.2, -1.5, 0.5, -0.8, 2.2
    assert losses.clipped_surrogate(ratio, advantage, 0.8, 1.2, None).item() == pytest.approx(-1.6 / 5)


def test_a_clipped_step_has_no_gradient() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    loss = losses.clipped_surrogate(ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.8, 1.2, None)
    (gradient,) = torch.autograd.grad(loss, ratio)
    assert gradient.tolist() == [0.0, 0.25, -0.25, 0.0]


def test_appos_range_lets_a_bad_action_fall_less_far_than_ppos() -> None:
    ratio, advantage = torch.tensor([0.82]), torch.tensor([-1.0])
    assert losses.clipped_surrogate(ratio, advantage, 0.8, 1.2, None).item() == pytest.approx(0.82)
    assert losses.clipped_surrogate(ratio, advantage, 1 / 1.2, 1.2, None).item() == pytest.approx(1 / 1.2)


def test_truly_ppo_pulls_back_only_what_left_the_region_and_gained_by_it() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 1.5])
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0])
    kl = torch.tensor([0.5, 0.5, 0.5, 0.1], requires_grad=True)
    loss = losses.rollback_surrogate(ratio, advantage, kl, 0.2, 2.0, None)
    # wA = 1.5, -1.5, -0.5, 1.5; the first and third less twice 0.3
    assert loss.item() == pytest.approx(-(0.9 - 1.5 - 1.1 + 1.5) / 4)
    (gradient,) = torch.autograd.grad(loss, kl)
    assert gradient.tolist() == [0.5, 0.0, 0.5, 0.0]


def test_a_sum_leaves_out_what_does_not_count() -> None:
    assert losses.masked_sum(torch.tensor([1.0, math.inf, 3.0]), torch.tensor([True, False, True])).item() == 4.0
    assert losses.masked_sum(torch.tensor([1.0, 2.0, 3.0]), None).item() == 6.0


def test_masked_steps_do_not_count_even_when_they_are_not_finite() -> None:
    x = torch.tensor([1.0, math.nan, 3.0])
    mask = torch.tensor([True, False, True])
    assert losses.masked_mean(x, mask).item() == 2.0
    assert losses.value_loss(x, torch.zeros(3), mask).item() == 5.0
    assert losses.standardized(x, mask)[[0, 2]].tolist() == pytest.approx([-1.0, 1.0])


def test_standardized_has_mean_zero_and_std_one() -> None:
    assert losses.standardized(torch.tensor([2.0, 4.0]), None).tolist() == pytest.approx([-1.0, 1.0])


def test_policy_gradient_is_minus_the_weighted_mean() -> None:
    assert losses.policy_gradient(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 3.0]), None).item() == 3.5


def test_value_losses_on_literals() -> None:
    value, old, target = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])
    assert losses.value_loss(value, target, None).item() == 2.5
    # the first is pulled back to 1.5: (1.5 - 3)^2 = 2.25
    assert losses.clipped_value_loss(value, old, target, 0.5, None).item() == pytest.approx((2.25 + 4.0) / 2)


def test_diagnostics_on_literals() -> None:
    log_ratio = torch.tensor([0.0, math.log(2.0)])
    assert losses.approximate_kl(log_ratio, None).item() == pytest.approx((1.0 - math.log(2.0)) / 2)
    assert losses.approximate_kl(log_ratio, torch.tensor([True, False])).item() == 0.0
    assert losses.outside_fraction(log_ratio, 0.8, 1.2, None).item() == 0.5
    assert losses.outside_fraction(-log_ratio, 0.8, 1.2, None).item() == 0.5
    assert losses.outside_fraction(log_ratio, 0.8, 2.5, None).item() == 0.0
    target = torch.tensor([0.0, 2.0, 9.0])
    mask = torch.tensor([True, True, False])
    assert losses.explained_variance(torch.tensor([0.0, 1.0, 0.0]), target, mask).item() == 0.75
    assert losses.explained_variance(target, target, None).item() == 1.0


def test_one_ratio_in_a_far_tail_leaves_the_approximate_kl_finite() -> None:
    kl = losses.approximate_kl(torch.tensor([0.0, 200.0]), None).item()
    assert kl == pytest.approx(math.exp(60.0) / 2)


SIZE = 200
Each = Callable[[int], float]


def slow_mean(each: Each, valid: torch.Tensor | None) -> float:
    """The mean over the steps that count, one by one."""
    values = [each(i) for i in range(SIZE) if valid is None or valid[i]]
    return math.fsum(values) / len(values)


@pytest.fixture(params=[False, True], ids=["all", "masked"])
def valid(request: pytest.FixtureRequest) -> torch.Tensor | None:
    return torch.from_numpy(np.random.default_rng(9).random(SIZE) > 0.3) if request.param else None


def drawn(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=SIZE))


@pytest.mark.parametrize(("low", "high"), [(0.8, 1.2), (1 / 1.2, 1.2)])
def test_the_clipped_surrogate_agrees_with_a_slow_reference(
    low: float, high: float, valid: torch.Tensor | None
) -> None:
    log_ratio, advantage = 0.4 * drawn(0), drawn(1)

    def each(i: int) -> float:
        ratio, worth = math.exp(log_ratio[i]), advantage[i].item()
        return -min(ratio * worth, min(max(ratio, low), high) * worth)

    loss = losses.clipped_surrogate(log_ratio.exp(), advantage, low, high, valid)
    # The bounds are float32 whatever the ratio is.
    assert loss.item() == pytest.approx(slow_mean(each, valid), abs=1e-7)


def test_value_losses_agree_with_a_slow_reference(valid: torch.Tensor | None) -> None:
    value, old, target = drawn(0), drawn(1), drawn(2)

    def plain(i: int) -> float:
        return (value[i].item() - target[i].item()) ** 2

    def clipped(i: int) -> float:
        near = min(max(value[i].item(), old[i].item() - 0.5), old[i].item() + 0.5)
        return max(plain(i), (near - target[i].item()) ** 2)

    assert losses.value_loss(value, target, valid).item() == pytest.approx(slow_mean(plain, valid), abs=1e-12)
    loss = losses.clipped_value_loss(value, old, target, 0.5, valid)
    assert loss.item() == pytest.approx(slow_mean(clipped, valid), abs=1e-12)


def test_the_approximate_kl_agrees_with_a_slow_reference(valid: torch.Tensor | None) -> None:
    log_ratio = 0.4 * drawn(0)

    def each(i: int) -> float:
        return math.exp(log_ratio[i]) - 1.0 - log_ratio[i].item()

    assert losses.approximate_kl(log_ratio, valid).item() == pytest.approx(slow_mean(each, valid), abs=1e-12)
