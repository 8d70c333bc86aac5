"""An ensemble is its members side by side, whatever it is computed by."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common.rl import dense
from common.rl.dense import Activation, Ensemble, tower


@pytest.fixture(params=["blas", "onednn", "both"], autouse=True)
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever this processor would take; both: as Intel's do."""
    monkeypatch.setattr(dense, "_ONEDNN", request.param != "blas")
    monkeypatch.setattr(dense, "_INTEL", request.param == "both")


def apart(ensemble: Ensemble, x: Tensor, activation: Activation) -> list[Tensor]:
    """Gives each member's output, layer by layer."""
    parameters = list(ensemble.parameters())
    outputs = []
    for member in range(parameters[0].shape[0]):
        y = x if x.ndim == 2 else x[member]
        for i in range(0, len(parameters), 2):
            y = functional.linear(y, parameters[i][member].t(), parameters[i + 1][member, 0])
            if i < len(parameters) - 2:
                y = y.tanh() if activation == "tanh" else y.relu()
        outputs.append(y)
    return outputs


# Large enough for oneDNN in the middle layer, and small enough for it nowhere.
@pytest.mark.parametrize("sizes", [(5, 256, 256, 3), (5, 8, 3)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("own_inputs", [False, True])
def test_an_ensemble_equals_separate_networks(sizes: tuple[int, ...], activation: Activation, own_inputs: bool) -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(3, sizes, activation)
    x = torch.randn(3, 64, 5) if own_inputs else torch.randn(64, 5)
    x.requires_grad_()
    together, separate = ensemble(x), torch.stack(apart(ensemble, x, activation))
    torch.testing.assert_close(together, separate, rtol=0, atol=1e-6)
    wrt, weight = [x, *ensemble.parameters()], torch.randn(separate.shape)
    found = torch.autograd.grad((together * weight).mean(), wrt)
    expected = torch.autograd.grad((separate * weight).mean(), wrt)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_what_other_devices_compute_is_the_same(activation: Activation) -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(2, (4, 32, 3), activation)
    x = torch.randn(16, 4)
    single = ensemble(x)
    # float64 takes the way of every device but the CPU.
    double = ensemble.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single, double.float(), rtol=0, atol=1e-6)


def test_frozen_gradients_reach_the_input_alone() -> None:
    torch.manual_seed(0)
    ensemble, x = Ensemble(2, (4, 8, 1), "relu"), torch.randn(6, 4, requires_grad=True)
    wrt = [x, *ensemble.parameters()]
    expected = torch.autograd.grad(ensemble(x).sum(), [x])[0]
    found = torch.autograd.grad(ensemble(x, frozen=True).sum(), wrt, allow_unused=True)
    torch.testing.assert_close(found[0], expected)
    assert all(gradient is None for gradient in found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_members_can_be_asked_alone(dtype: torch.dtype) -> None:
    ensemble = Ensemble(3, (4, 8, 1), "relu").to(dtype)
    x = torch.randn(6, 4, dtype=dtype)
    torch.testing.assert_close(ensemble(x, members=2), ensemble(x)[:2])


def test_members_begin_apart_and_within_one_over_the_root_of_the_inputs() -> None:
    torch.manual_seed(0)
    for p, bound in zip(Ensemble(2, (16, 100, 1), "relu").parameters(), (0.25, 0.25, 0.1, 0.1), strict=True):
        assert 0.5 * bound < p.abs().max() <= bound
        assert not torch.equal(p[0], p[1])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
# The last are enough for Intel's to take oneDNN in the first layer, and too few in the second.
@pytest.mark.parametrize("rows", [5, 3000, 17000])
def test_a_tower_gives_the_values_and_gradients_of_its_layers_in_turn(activation: Activation, rows: int) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 32), torch.nn.Linear(32, 16)]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    x = torch.randn(rows, 4, requires_grad=True)
    weigh = torch.randn(rows, 16)
    y = tower(x, activation, parameters)
    found = torch.autograd.grad((y * weigh).sum(), [x, *parameters])
    z, exact = x.detach().double().requires_grad_(), [p.detach().double().requires_grad_() for p in parameters]
    h = z
    for weight, bias in zip(exact[::2], exact[1::2], strict=True):
        h = getattr(torch, activation)(h @ weight.T + bias)
    expected = torch.autograd.grad((h * weigh.double()).sum(), [z, *exact])
    torch.testing.assert_close(y.double(), h, rtol=1e-5, atol=1e-5)
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape
        torch.testing.assert_close(own.double(), other, rtol=1e-4, atol=1e-4)
