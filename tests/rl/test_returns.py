from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.rl.ops.returns import discounted_returns, gae, lambda_returns, n_step_returns, next_values
from common.rl.ops.vtrace import Thresholds, vtrace

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


def test_lambda_returns_on_literals() -> None:
    # 3 + 4; 2 + (4 + 7)/4; 1 + (2 + 4.75)/4
    assert lambda_returns(REWARD, AFTER, FALSE, FALSE, None, 0.5, 0.5)[:, 0].tolist() == [2.6875, 4.75, 7.0]
    assert lambda_returns(REWARD, AFTER, at(1), FALSE, None, 0.5, 0.5)[:, 0].tolist() == [2.0, 2.0, 7.0]
    assert lambda_returns(REWARD, AFTER, FALSE, at(1), None, 0.5, 0.5)[:, 0].tolist() == [2.5, 4.0, 7.0]
    assert lambda_returns(REWARD, AFTER, FALSE, FALSE, ~at(1), 0.5, 0.5)[:, 0].tolist() == [2.0, 0.0, 7.0]


def test_n_step_returns_on_literals() -> None:
    assert n_step_returns(REWARD, AFTER, FALSE, FALSE, None, 0.5, 1)[:, 0].tolist() == [2.0, 4.0, 7.0]
    # 1 + 2/2 + 4/4, 2 + 3/2 + 8/4, and the last row has but one step
    assert n_step_returns(REWARD, AFTER, FALSE, FALSE, None, 0.5, 2)[:, 0].tolist() == [3.0, 5.5, 7.0]
    assert n_step_returns(REWARD, AFTER, at(1), FALSE, None, 0.5, 2)[:, 0].tolist() == [2.0, 2.0, 7.0]
    assert n_step_returns(REWARD, AFTER, at(0), FALSE, None, 0.5, 3)[:, 0].tolist() == [1.0, 5.5, 7.0]
    assert n_step_returns(REWARD, AFTER, FALSE, at(0), None, 0.5, 3)[:, 0].tolist() == [2.0, 5.5, 7.0]
    assert n_step_returns(REWARD, AFTER, FALSE, FALSE, ~at(1), 0.5, 2)[:, 0].tolist() == [2.0, 0.0, 7.0]


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


def recorded(seed: int, steps: int = 30, columns: int = 7) -> tuple[Any, ...]:
    """Draws rewards, values after each step, and flags; what is not valid holds what must not be used."""
    draw = np.random.default_rng(seed)
    r, after = draw.normal(size=(2, steps, columns))
    term, trunc = draw.random((2, steps, columns)) < 0.12
    valid = draw.random((steps, columns)) > 0.1
    return np.where(valid, r, np.inf), after, term, trunc, valid


def slow_n_step(r: Array, after: Array, term: Array, trunc: Array, valid: Array, g: float, n: int, t: int) -> float:
    """One column's return from step t, read forwards."""
    total, steps = 0.0, len(r)
    for k in range(n):
        s = t + k
        total += g**k * r[s]
        cut = term[s] or trunc[s] or s + 1 == steps or not valid[s + 1]
        if cut or k + 1 == n:
            return float(total + (0.0 if term[s] else g ** (k + 1) * after[s]))
    raise AssertionError


def slow_lambda(r: Array, after: Array, term: Array, trunc: Array, valid: Array, g: float, lam: float, t: int) -> float:
    """One column's λ-return from step t: its n-step returns weighted with (1 - λ)λ^(n-1), the last with the rest."""
    last = t
    while not (term[last] or trunc[last] or last + 1 == len(r) or not valid[last + 1]):
        last += 1
    n = last - t + 1
    parts = [slow_n_step(r, after, term, trunc, valid, g, k, t) for k in range(1, n + 1)]
    weights = [(1 - lam) * lam ** (k - 1) for k in range(1, n)] + [lam ** (n - 1)]
    return float(np.dot(parts, weights))


@pytest.mark.parametrize("seed", range(4))
def test_n_step_and_lambda_returns_agree_with_forward_views(seed: int) -> None:
    arrays = recorded(seed)
    steps, columns = arrays[0].shape
    for n in (1, 3, 50):
        returns = n_step_returns(*map(torch.from_numpy, arrays), 0.9, n).numpy()
        for t, b in np.ndindex(steps, columns):
            slow = slow_n_step(*(x[:, b] for x in arrays), 0.9, n, t) if arrays[-1][t, b] else 0.0
            assert returns[t, b] == pytest.approx(slow, abs=1e-12)
    for lam in (0.0, 0.7, 1.0):
        returns = lambda_returns(*map(torch.from_numpy, arrays), 0.9, lam).numpy()
        for t, b in np.ndindex(steps, columns):
            slow = slow_lambda(*(x[:, b] for x in arrays), 0.9, lam, t) if arrays[-1][t, b] else 0.0
            assert returns[t, b] == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("resets", [False, True])
def test_every_estimator_agrees_with_its_loop_wherever_an_episode_ends(resets: bool) -> None:
    # One column for each way in which four steps go on, are terminated, are truncated or, with resets, no decisions.
    fates = np.array(list(product(range(4 if resets else 3), repeat=4))).T
    term, trunc, valid = fates == 1, fates == 2, fates != 3
    r, v, after = np.random.default_rng(0).normal(size=(3, *fates.shape))
    tensors: list[Any] = [torch.from_numpy(x) for x in (r, v, after, term, trunc)]
    tensors.append(torch.from_numpy(valid) if resets else None)
    columns: list[list[Any]] = [[x[:, b] for x in (r, after, term, trunc, valid)] for b in range(fates.shape[1])]

    def slow(estimate: Any, *settings: float) -> Array:
        places = [[estimate(*column, *settings, t) if column[-1][t] else 0.0 for column in columns] for t in range(4)]
        return np.array(places)

    advantage = gae(*tensors, 0.9, 0.7).numpy()
    np.testing.assert_allclose(advantage, slow_gae(r, v, after, term, trunc, valid, 0.9, 0.7), atol=1e-12)
    without_value: list[Any] = [tensors[0], *tensors[2:]]
    for n in (1, 2, 3, 9):
        returns = n_step_returns(*without_value, 0.9, n).numpy()
        np.testing.assert_allclose(returns, slow(slow_n_step, 0.9, n), atol=1e-12)
    for lam in (0.0, 0.7, 1.0):
        returns = lambda_returns(*without_value, 0.9, lam).numpy()
        np.testing.assert_allclose(returns, slow(slow_lambda, 0.9, lam), atol=1e-12)


@pytest.mark.parametrize("end", ["terminated", "truncated", "invalid"])
@pytest.mark.parametrize("position", range(4))
def test_an_ending_at_any_position_cuts_every_estimator_there(end: str, position: int) -> None:
    reward, after = torch.arange(1.0, 5.0).view(4, 1), torch.full((4, 1), 10.0)
    flags = torch.zeros(4, 1, dtype=torch.bool)
    flags[position] = True
    no = torch.zeros_like(flags)
    ends = {"terminated": (flags, no, None), "truncated": (no, flags, None), "invalid": (no, no, ~flags)}[end]
    changed = reward + 100.0 * (torch.arange(4).view(4, 1) > position)
    value, off_policy = torch.full((4, 1), 5.0), torch.full((4, 1), -0.1)
    for n in range(1, 6):
        whole, beyond = (n_step_returns(r, after, *ends, 1.0, n) for r in (reward, changed))
        torch.testing.assert_close(whole[: position + 1], beyond[: position + 1])
    whole, beyond = (gae(r, value, after, *ends, 0.9, 0.95) for r in (reward, changed))
    torch.testing.assert_close(whole[: position + 1], beyond[: position + 1])
    whole, beyond = (
        torch.stack([traced.target, traced.advantage])
        for traced in (vtrace(off_policy, r, value, after, *ends, 0.9, 1.0, Thresholds()) for r in (reward, changed))
    )
    torch.testing.assert_close(whole[:, : position + 1], beyond[:, : position + 1])
    expected = sum(range(1, position + 2)) + (0.0 if end == "terminated" else 10.0)
    if end == "invalid":
        expected = sum(range(1, position + 1)) + 10.0 if position else 0.0
    assert lambda_returns(reward, after, *ends, 1.0, 1.0)[0].item() == expected


@pytest.mark.parametrize("seed", range(3))
def test_gae_at_lambda_one_is_the_discounted_return_minus_the_value(seed: int) -> None:
    draw = np.random.default_rng(seed)
    r, v = torch.from_numpy(draw.normal(size=(2, 20, 5)))
    after = torch.cat([v[1:], torch.ones(1, 5, dtype=v.dtype)])
    term, trunc = torch.from_numpy(draw.random((2, 20, 5)) < 0.1)
    returns = discounted_returns(r, after, term, trunc, None, 0.9)
    torch.testing.assert_close(gae(r, v, after, term, trunc, None, 0.9, 1.0), returns - v)
