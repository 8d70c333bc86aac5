from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.rl.ops.returns import lambda_returns
from common.rl.ops.vtrace import Thresholds, VTrace, vtrace

Array = NDArray[Any]
FALSE = torch.zeros(3, 1, dtype=torch.bool)
# w = 2, 1/2, 1
LOG_RATIO = torch.tensor([[2.0], [0.5], [1.0]]).log()
REWARD = torch.tensor([[1.0], [2.0], [3.0]])
VALUE = torch.tensor([[1.0], [2.0], [4.0]])
AFTER = torch.tensor([[2.0], [4.0], [8.0]])


def literal(
    terminated: torch.Tensor = FALSE,
    truncated: torch.Tensor = FALSE,
    valid: torch.Tensor | None = None,
    lam: float = 1.0,
    thresholds: Thresholds | None = None,
) -> tuple[list[float], list[float]]:
    given = (LOG_RATIO, REWARD, VALUE, AFTER, terminated, truncated, valid)
    result = vtrace(*given, 0.5, lam, thresholds or Thresholds())
    return result.target[:, 0].tolist(), result.advantage[:, 0].tolist()


def at(step: int) -> torch.Tensor:
    flags = FALSE.clone()
    flags[step] = True
    return flags


def test_vtrace_on_literals() -> None:
    # rho and c are 1, 1/2, 1; the errors 1, 2, 3 become δ = 1, 1, 3
    # vs - V, from the last: 3; 1 + 3/4; 1 + 1.75/2
    target, advantage = literal()
    assert target == [2.875, 3.75, 7.0]
    # 1 + 3.75/2 - 1; half of 2 + 7/2 - 2; 3 + 4 - 4
    assert advantage == [1.875, 1.75, 3.0]


def test_the_thresholds_cut_each_its_own_weight() -> None:
    # rho is 2, 1/2, 1 and δ 2, 1, 3; c is 1/4: vs - V, from the last: 3; 1 + 3/8; 2 + 1.375/8; pg_rho is 3/2, 1/2, 1
    target, advantage = literal(thresholds=Thresholds(rho=4.0, c=0.25, pg_rho=1.5))
    assert target == [1.0 + 2.171875, 3.375, 7.0]
    assert advantage == [1.5 * (1.0 + 1.6875 - 1.0), 0.5 * (2.0 + 3.5 - 2.0), 3.0]


def test_lambda_scales_the_trace() -> None:
    # vs - V at λ 1/2, from the last: 3; 1 + 3/8; 1 + 1.375/4
    assert literal(lam=0.5)[0] == [2.34375, 3.375, 7.0]
    assert literal(lam=0.0)[0] == [2.0, 3.0, 7.0]


def test_termination_bootstraps_nothing_and_stops_the_trace() -> None:
    # the second step: half of 2 - 2
    assert literal(terminated=at(1)) == ([2.0, 2.0, 7.0], [1.0, 0.0, 3.0])


def test_truncation_bootstraps_and_stops_the_trace() -> None:
    assert literal(truncated=at(1)) == ([2.5, 3.0, 7.0], [1.5, 1.0, 3.0])


def test_an_invalid_step_keeps_its_value_and_stops_the_trace() -> None:
    assert literal(valid=~at(1)) == ([2.0, 2.0, 7.0], [1.0, 0.0, 3.0])


def slow_vtrace(
    log_ratio: Array,
    r: Array,
    v: Array,
    after: Array,
    term: Array,
    trunc: Array,
    valid: Array,
    g: float,
    lam: float,
    cut: Thresholds,
) -> tuple[Array, Array]:
    """The sum form: vs - V is the sum over k of g^k, the product of c before step t + k, and δ there."""
    steps, columns = r.shape
    target, advantage = v.copy(), np.zeros((steps, columns))

    def weight(t: int, b: int, bound: float) -> float:
        return float(min(bound, np.exp(log_ratio[t, b])))

    def goes_on(t: int, b: int) -> bool:
        return bool(not term[t, b] and not trunc[t, b] and t + 1 < steps and valid[t + 1, b])

    for t, b in np.ndindex(steps, columns):
        if not valid[t, b]:
            continue
        trace, s = 1.0, t
        while True:
            bootstrap = 0.0 if term[s, b] else g * after[s, b]
            target[t, b] += trace * weight(s, b, cut.rho) * (r[s, b] + bootstrap - v[s, b])
            if not goes_on(s, b):
                break
            trace *= g * lam * weight(s, b, cut.c)
            s += 1
    for t, b in np.ndindex(steps, columns):
        if valid[t, b]:
            following = target[t + 1, b] if goes_on(t, b) else after[t, b]
            bootstrap = 0.0 if term[t, b] else g * following
            advantage[t, b] = weight(t, b, cut.pg_rho) * (r[t, b] + bootstrap - v[t, b])
    return target, advantage


def drawn(seed: int, steps: int = 20, columns: int = 4, rate: float = 0.12) -> list[Any]:
    draw = np.random.default_rng(seed)
    log_ratio, r, v = draw.normal(size=(3, steps, columns))
    after = np.concatenate([v[1:], draw.normal(size=(1, columns))])
    term, trunc = draw.random((2, steps, columns)) < rate
    after = np.where(trunc, draw.normal(size=after.shape), after)
    return [log_ratio, r, v, after, term, trunc, draw.random((steps, columns)) > rate]


def fast(arrays: list[Any], g: float, lam: float, cut: Thresholds) -> VTrace:
    tensors: list[Any] = [torch.from_numpy(x) for x in arrays]
    return vtrace(*tensors, g, lam, cut)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 12),
    rate=st.sampled_from([0.0, 0.1, 0.5]),
    lam=st.sampled_from([0.0, 0.9, 1.0]),
    cut=st.builds(Thresholds, *[st.sampled_from([0.5, 1.0, 3.0])] * 3),
)
def test_vtrace_agrees_with_the_sum_form(seed: int, steps: int, rate: float, lam: float, cut: Thresholds) -> None:
    arrays = drawn(seed, steps, 3, rate)
    result = fast(arrays, 0.9, lam, cut)
    target, advantage = slow_vtrace(*arrays, 0.9, lam, cut)
    np.testing.assert_allclose(result.target.numpy(), target, atol=1e-12)
    np.testing.assert_allclose(result.advantage.numpy(), advantage, atol=1e-12)


@pytest.mark.parametrize("cut", [Thresholds(), Thresholds(rho=1.4, c=0.7, pg_rho=1.1)])
@pytest.mark.parametrize("resets", [False, True])
def test_vtrace_agrees_with_the_sum_form_wherever_an_episode_ends(cut: Thresholds, resets: bool) -> None:
    # One column for each way in which four steps go on, are terminated, are truncated or, with resets, no decisions.
    fates = np.array(list(product(range(4 if resets else 3), repeat=4))).T
    log_ratio, r, v, after = np.random.default_rng(0).normal(size=(4, *fates.shape))
    arrays = [log_ratio, r, v, after, fates == 1, fates == 2, fates != 3]
    # A value after a step that goes on is that of the next row.
    goes_on = (fates[:-1] == 0) & (fates[1:] != 3)
    after[:-1] = np.where(goes_on, v[1:], after[:-1])
    tensors: list[Any] = [torch.from_numpy(x) for x in arrays]
    result = vtrace(*tensors[:-1], tensors[-1] if resets else None, 0.9, 0.8, cut)
    target, advantage = slow_vtrace(*arrays, 0.9, 0.8, cut)
    np.testing.assert_allclose(result.target.numpy(), target, atol=1e-12)
    np.testing.assert_allclose(result.advantage.numpy(), advantage, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lam", [0.6, 1.0])
def test_on_policy_the_target_is_the_lambda_return(seed: int, lam: float) -> None:
    arrays = drawn(seed)
    arrays[0] = np.zeros_like(arrays[0])
    _, r, v, after, term, trunc, valid = map(torch.from_numpy, arrays)
    returns = lambda_returns(r, after, term, trunc, valid, 0.9, lam)
    expected = torch.where(valid, returns, v)
    torch.testing.assert_close(fast(arrays, 0.9, lam, Thresholds()).target, expected, rtol=0, atol=1e-12)


def test_an_invalid_step_may_hold_anything() -> None:
    arrays = drawn(0)
    valid = arrays[-1]
    clean = fast(arrays, 0.9, 1.0, Thresholds(rho=np.inf, c=np.inf, pg_rho=np.inf))
    arrays[0] = np.where(valid, arrays[0], 1e6)
    arrays[1] = np.where(valid, arrays[1], np.nan)
    dirty = fast(arrays, 0.9, 1.0, Thresholds(rho=np.inf, c=np.inf, pg_rho=np.inf))
    torch.testing.assert_close(dirty.target, clean.target, rtol=0, atol=0)
    torch.testing.assert_close(dirty.advantage, clean.advantage, rtol=0, atol=0)
