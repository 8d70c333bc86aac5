from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.rl.ops.returns import discounted_returns, gae, next_values

FALSE = torch.zeros(3, 1, dtype=torch.bool)
REWARD = torch.tensor([[1.0], [2.0], [3.0]])
VALUE = torch.tensor([[1.0], [2.0], [4.0]])
AFTER = torch.tensor([[2.0], [4.0], [8.0]])


def at(step: int) -> torch.Tensor:
    flags = FALSE.clone()
    flags[step] = True
    return flags


def test_gae_on_literals_without_an_ending() -> None:
    # deltas 1 + 1 - 1, 2 + 2 - 2, 3 + 4 - 4; discount times lambda is 1/4
    advantage = gae(REWARD, VALUE, AFTER, FALSE, FALSE, None, 0.5, 0.5)
    assert advantage[:, 0].tolist() == [1.6875, 2.75, 3.0]


def test_termination_bootstraps_nothing_and_stops_the_recursion() -> None:
    advantage = gae(REWARD, VALUE, AFTER, at(1), FALSE, None, 0.5, 0.5)
    assert advantage[:, 0].tolist() == [1.0, 0.0, 3.0]


def test_truncation_bootstraps_and_stops_the_recursion() -> None:
    advantage = gae(REWARD, VALUE, AFTER, FALSE, at(1), None, 0.5, 0.5)
    assert advantage[:, 0].tolist() == [1.5, 2.0, 3.0]


def test_an_invalid_step_has_no_advantage_and_stops_the_recursion() -> None:
    advantage = gae(REWARD, VALUE, AFTER, FALSE, FALSE, ~at(1), 0.5, 0.5)
    assert advantage[:, 0].tolist() == [1.0, 0.0, 3.0]


def test_a_true_last_observation_replaces_the_value_of_the_next_row() -> None:
    value = torch.arange(6.0).view(3, 2)
    after = next_values(value, torch.tensor([1, 2]), torch.tensor([50.0, 60.0]))
    assert after.tolist() == [[2.0, 50.0], [60.0, 5.0]]
    assert value.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert next_values(value, None, None).tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_discounted_returns_on_literals() -> None:
    returns = discounted_returns(REWARD, AFTER, FALSE, FALSE, None, 0.5)
    assert returns[:, 0].tolist() == [3.75, 5.5, 7.0]
    assert discounted_returns(REWARD, AFTER, at(1), FALSE, None, 0.5)[:, 0].tolist() == [2.0, 2.0, 7.0]
    assert discounted_returns(REWARD, AFTER, FALSE, at(1), None, 0.5)[:, 0].tolist() == [3.0, 4.0, 7.0]
    assert discounted_returns(REWARD, AFTER, FALSE, FALSE, ~at(1), 0.5)[:, 0].tolist() == [2.0, 0.0, 7.0]


Array = NDArray[Any]


def slow_gae(r: Array, v: Array, after: Array, term: Array, trunc: Array, valid: Array, g: float, lam: float) -> Array:
    steps, columns = r.shape
    advantage = np.zeros((steps, columns))
    for b in range(columns):
        following = 0.0
        for t in reversed(range(steps)):
            if not valid[t, b]:
                following = 0.0
                continue
            bootstrap = 0.0 if term[t, b] else g * after[t, b]
            carried = 0.0 if term[t, b] or trunc[t, b] else g * lam * following
            following = r[t, b] + bootstrap - v[t, b] + carried
            advantage[t, b] = following
    return advantage


@pytest.mark.parametrize("seed", range(5))
def test_gae_agrees_with_a_slow_reference(seed: int) -> None:
    draw = np.random.default_rng(seed)
    r, v, after = draw.normal(size=(3, 40, 7))
    term, trunc = draw.random((2, 40, 7)) < 0.1
    valid = draw.random((40, 7)) > 0.1
    tensors: list[Any] = [torch.from_numpy(x) for x in (r, v, after, term, trunc, valid)]
    expected = slow_gae(r, v, after, term, trunc, valid, 0.97, 0.9)
    np.testing.assert_allclose(gae(*tensors, 0.97, 0.9).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_returns_are_values_plus_advantages_at_lambda_one(seed: int) -> None:
    draw = np.random.default_rng(seed)
    r, v = torch.from_numpy(draw.normal(size=(2, 20, 5)))
    v = torch.cat([v, torch.ones(1, 5, dtype=v.dtype)])
    term, trunc = torch.from_numpy(draw.random((2, 20, 5)) < 0.1)
    expected = v[:-1] + gae(r, v[:-1], v[1:], term, trunc, None, 0.9, 1.0)
    torch.testing.assert_close(discounted_returns(r, v[1:], term, trunc, None, 0.9), expected)
