import math

import pytest
import torch

from common.rl.value_heads import Histogram, Mean, Quantiles

REWARD, DISCOUNT = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0])


def test_a_mean_and_its_errors_on_literals() -> None:
    head = Mean(threshold=1.0)
    numbers = torch.tensor([[2.0], [4.0]])
    assert head.expected(numbers).tolist() == [2.0, 4.0]
    # targets 1 + 6/2 and 1: errors 2 and -3
    losses, priorities = head.errors(numbers, torch.tensor([[6.0], [9.0]]), REWARD, DISCOUNT)
    assert losses.tolist() == [1.5, 2.5]
    assert priorities.tolist() == [2.0, 3.0]


def test_a_histogram_and_its_errors_on_literals() -> None:
    head = Histogram(3, -1.0, 1.0)
    numbers = torch.tensor([[0.0, math.log(2.0), 0.0], [0.0, 0.0, 0.0]])
    assert head.expected(numbers).tolist() == pytest.approx([0.0, 0.0])
    assert head.expected(torch.tensor([0.0, 0.0, math.log(2.0)])).item() == pytest.approx(0.25)
    # 0.5, 1 and 1.5 -> 1 of a quarter, a half and a quarter; and all of it at 1
    losses, priorities = head.errors(numbers, numbers[:1].expand(2, 3), REWARD, DISCOUNT)
    eighth = 0.125 * math.log(0.125 / 0.5) + 0.875 * math.log(0.875 / 0.25)
    assert losses.tolist() == pytest.approx([eighth, math.log(3.0)])
    assert priorities.tolist() == losses.tolist()


def test_quantiles_and_their_errors_on_literals() -> None:
    head = Quantiles(2, threshold=1.0)
    numbers = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    assert head.expected(numbers).tolist() == [2.0, 1.0]
    # targets 2 and 6, as in the loss's own test; and 1 and 1, where nothing is wrong
    losses, priorities = head.errors(numbers, torch.tensor([[2.0, 10.0], [5.0, 5.0]]), REWARD, DISCOUNT)
    assert losses.tolist() == [1.625, 0.0]
    assert priorities.tolist() == losses.tolist()


@pytest.mark.parametrize("head", [Mean(1.0), Histogram(5, -2.0, 2.0), Quantiles(4, 1.0)])
def test_a_gradient_reaches_the_numbers_and_nothing_else(head: Mean | Histogram | Quantiles) -> None:
    torch.manual_seed(0)
    numbers = torch.randn(2, head.size, requires_grad=True)
    losses, priorities = head.errors(numbers, torch.randn(2, head.size), REWARD, DISCOUNT)
    assert priorities.requires_grad is False
    (gradient,) = torch.autograd.grad(losses.sum(), numbers)
    assert gradient.abs().sum() > 0
    assert not list(head.parameters())
    assert not head.state_dict()
