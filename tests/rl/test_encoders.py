import copy

import pytest
import torch
from torch import nn

from common.rl.encoders import MLP, Residual, channels_last, convolution
from common.types import ArraySpec


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        # Convolutions and their biases, then the dense layer on what is left of 84 x 84.
        ("nature_cnn", 4 * 64 * 32 + 32 + 32 * 16 * 64 + 64 + 64 * 9 * 64 + 64 + 7 * 7 * 64 * 512 + 512),
        ("shallow_cnn", 4 * 64 * 16 + 16 + 16 * 16 * 32 + 32 + 9 * 9 * 32 * 256 + 256),
        (
            "impala_resnet",
            (4 * 9 * 16 + 16 + 4 * (16 * 9 * 16 + 16))
            + (16 * 9 * 32 + 32 + 4 * (32 * 9 * 32 + 32))
            + (32 * 9 * 32 + 32 + 4 * (32 * 9 * 32 + 32))
            + (11 * 11 * 32 * 256 + 256),
        ),
    ],
)
def test_a_convolution_has_the_weights_of_its_paper(name: str, weights: int) -> None:
    network = convolution(name, ArraySpec("obs", "|u1", (4, 84, 84)))
    assert sum(p.numel() for p in network.parameters()) == weights


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((84, 84, 4), True),
        ((4, 84, 84), False),
        ((210, 160, 3), True),
        ((3, 210, 160), False),
        ((10, 10, 10), True),  # MinAtar's Seaquest
        ((12, 10, 10), False),
        ((10, 10, 12), True),
        ((3, 5, 3), True),
    ],
)
def test_the_side_that_is_unlike_the_others_is_the_channels(shape: tuple[int, ...], last: bool) -> None:
    assert channels_last(shape) == last


def test_a_residual_block_adds_to_what_came_in() -> None:
    block = Residual(1)
    for layer in (block.first, block.second):
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight[0, 0, 1, 1] = 3.0
    x = torch.tensor([[[[2.0, -1.0]]]])
    assert block(x).tolist() == [[[[2.0 + 9 * 2.0, -1.0]]]]
    assert x.tolist() == [[[[2.0, -1.0]]]]


def test_an_mlp_applies_its_activation_after_every_layer() -> None:
    mlp = MLP(1, (1, 1), "relu")
    first, second = (layer for layer in mlp.layers if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.fill_(-2.0)
        second.weight.fill_(5.0)
    assert mlp(torch.tensor([[-3.0], [3.0]])).tolist() == [[30.0], [0.0]]
    assert MLP(1, (1,), "tanh")(torch.tensor([[100.0]])).abs().item() == 1.0


def test_a_copy_of_an_mlp_computes_with_its_own_weights() -> None:
    one = MLP(3, (4,), "relu")
    other = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    x = torch.ones(2, 3)
    assert not other(x).any()
    assert one(x).any()
