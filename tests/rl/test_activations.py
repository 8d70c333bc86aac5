from __future__ import annotations

import pytest
import torch

from common.rl.activations import tanh


def test_values_and_gradients_are_those_of_tanh() -> None:
    x = torch.linspace(-9.0, 9.0, 4001, requires_grad=True)
    exact = torch.tanh(x.detach().double())
    y = tanh(x)
    (gradient,) = torch.autograd.grad(y.sum(), [x])
    torch.testing.assert_close(y.double(), exact, rtol=3e-7, atol=0.0)
    torch.testing.assert_close(gradient.double(), 1.0 - exact * exact, rtol=2e-5, atol=3e-7)


def test_without_gradients_it_gives_the_same_and_leaves_its_argument_alone() -> None:
    x = torch.randn(7, 5).T
    before = x.clone()
    with torch.no_grad():
        y = tanh(x)
    assert torch.equal(x, before)
    assert torch.equal(y, tanh(x.detach().requires_grad_()).detach())
    assert y.shape == (5, 7)


def test_other_dtypes_are_left_to_torch() -> None:
    x = torch.randn(3, dtype=torch.float64)
    assert torch.equal(tanh(x), torch.tanh(x))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(tanh(x).sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), [x])
