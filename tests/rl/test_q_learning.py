import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.rl.ops.q_learning import huber, of_action, rescale, unrescale


def test_huber_is_squared_near_zero_and_linear_beyond() -> None:
    error = torch.tensor([0.0, 0.5, -1.0, 3.0, -3.0])
    assert huber(error, 1.0).tolist() == [0.0, 0.125, 0.5, 2.5, 2.5]
    assert huber(error, 2.0).tolist() == [0.0, 0.125, 0.5, 4.0, 4.0]


def test_the_slope_of_huber_is_the_error_cut_at_the_threshold() -> None:
    error = torch.tensor([0.5, -0.5, 4.0, -4.0], requires_grad=True)
    (slope,) = torch.autograd.grad(huber(error, 2.0).sum(), error)
    assert slope.tolist() == [0.5, -0.5, 2.0, -2.0]


def test_each_row_gives_the_numbers_of_its_own_action() -> None:
    values = torch.arange(12.0).view(2, 3, 2)
    assert of_action(values, torch.tensor([2, 0], dtype=torch.int32)).tolist() == [[4.0, 5.0], [6.0, 7.0]]


def test_rescaling_on_literals() -> None:
    x = torch.tensor([0.0, 3.0, -8.0], dtype=torch.float64)
    assert rescale(x, 0.0).tolist() == [0.0, 1.0, -2.0]
    assert rescale(x, 1e-3).tolist() == pytest.approx([0.0, 1.003, -2.008], abs=1e-15)
    assert unrescale(torch.tensor([0.0, 1.0, -2.0]), 0.0).tolist() == [0.0, 3.0, -8.0]


def reference(x: float, eps: float) -> float:
    return math.copysign(math.sqrt(abs(x) + 1.0) - 1.0, x) + eps * x


@given(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1e-3, 1e-2]))
def test_unrescaling_undoes_rescaling(x: float, eps: float) -> None:
    here = torch.tensor(x, dtype=torch.float64)
    there = rescale(here, eps)
    assert there.item() == pytest.approx(reference(x, eps), rel=1e-9, abs=1e-9)
    assert unrescale(there, eps).item() == pytest.approx(x, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("x", [1e-6, 1e-3, 0.1, 10.0, -1000.0])
def test_both_ways_are_exact_in_float32_too(x: float) -> None:
    assert unrescale(rescale(torch.tensor(x), 1e-3), 1e-3).item() == pytest.approx(x, rel=1e-6)
