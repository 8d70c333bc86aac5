import pytest
import torch
from torch import nn

from common.rl.cores import GRU, LSTM

CORES = pytest.mark.parametrize("kind", [LSTM, GRU])


@CORES
def test_a_core_unrolled_is_the_same_as_stepped_and_forgets_where_an_episode_begins(
    kind: type[LSTM] | type[GRU],
) -> None:
    torch.manual_seed(0)
    core = kind(3, 5)
    features, first = torch.randn(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    first[3, 1] = True
    start = tuple(torch.randn(2, 5) for _ in core.names)
    rows = core.unroll(features, first, start)
    state = start
    for t in range(6):
        state = core.step(features[t], first[t], state)
        for row, now in zip(rows, state, strict=True):
            torch.testing.assert_close(row[t], now)
    fresh = core.step(features[3], None, tuple(torch.zeros(2, 5) for _ in core.names))
    torch.testing.assert_close(rows[0][3, 1], fresh[0][1])
    assert not torch.allclose(rows[0][3, 0], fresh[0][0])


@CORES
def test_a_state_that_is_dropped_sends_no_gradient_back(kind: type[LSTM] | type[GRU]) -> None:
    torch.manual_seed(0)
    core = kind(3, 5)
    start = tuple(torch.randn(1, 5, requires_grad=True) for _ in core.names)
    first = torch.tensor([[False], [True]])
    out = core.unroll(torch.randn(2, 1, 3), first, start)[0]
    (before,) = torch.autograd.grad(out[0].sum(), start[:1], retain_graph=True)
    (after,) = torch.autograd.grad(out[1].sum(), start[:1])
    assert before.abs().max() > 0
    assert after.abs().max() == 0


def test_an_lstm_agrees_with_torchs_own() -> None:
    torch.manual_seed(0)
    lstm, reference = LSTM(3, 5), nn.LSTMCell(3, 5)
    order = torch.cat([torch.arange(10), torch.arange(15, 20), torch.arange(10, 15)])  # i f o g from i f g o
    with torch.no_grad():
        reference.bias_hh.zero_()
        lstm.input.weight.copy_(reference.weight_ih[order])
        lstm.input.bias.copy_(reference.bias_ih[order])
        lstm.recurrent.weight.copy_(reference.weight_hh[order])
    x, h, c = torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 5)
    for mine, theirs in zip(lstm.step(x, None, (h, c)), reference(x, (h, c)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_gru_agrees_with_torchs_own() -> None:
    torch.manual_seed(0)
    gru, reference = GRU(3, 5), nn.GRUCell(3, 5)
    with torch.no_grad():
        gru.input.weight.copy_(reference.weight_ih)
        gru.input.bias.copy_(reference.bias_ih)
        gru.recurrent.weight.copy_(reference.weight_hh)
        gru.recurrent.bias.copy_(reference.bias_hh)
    x, h = torch.randn(4, 3), torch.randn(4, 5)
    torch.testing.assert_close(gru.step(x, None, (h,))[0], reference(x, h))
