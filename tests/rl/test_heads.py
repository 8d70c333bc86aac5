import math
from typing import Any

import pytest
import torch

from common.rl.distributions import DiagNormal
from common.rl.heads import Head, Sizes
from common.types import ActionSpec

DISCRETE = ActionSpec("discrete", "<i8", (), (4,))
MULTI = ActionSpec("multi_discrete", "<i8", (3,), (2, 2, 5))
SWITCHES = ActionSpec("multi_binary", "<i8", (2, 2), (2, 2, 2, 2))
BOX = ActionSpec("box", "<f4", (2, 2), low=(-1.0,) * 4, high=(1.0,) * 4)
MIXED = ActionSpec("tuple", "<f8", (9,), parts=(DISCRETE, BOX, SWITCHES))


@pytest.mark.parametrize(
    ("action", "settings", "sizes"),
    [
        (DISCRETE, {}, Sizes(outputs=4, free=0, parameters=4, noise=1, choices=4)),
        (MULTI, {}, Sizes(outputs=9, free=0, parameters=9, noise=3, choices=9)),
        (SWITCHES, {}, Sizes(outputs=4, free=0, parameters=4, noise=4, choices=4)),
        (BOX, {}, Sizes(outputs=4, free=4, parameters=8, noise=4, choices=0)),
        (BOX, {"sigma": "state"}, Sizes(outputs=8, free=0, parameters=8, noise=4, choices=0)),
        (BOX, {"distribution": "tanh_normal"}, Sizes(outputs=4, free=4, parameters=8, noise=4, choices=0)),
        (BOX, {"distribution": "beta"}, Sizes(outputs=8, free=0, parameters=8, noise=96, choices=0)),
        (MIXED, {}, Sizes(outputs=12, free=4, parameters=16, noise=9, choices=8)),
    ],
)
def test_a_head_says_how_many_numbers_it_deals_in(action: ActionSpec, settings: dict[str, Any], sizes: Sizes) -> None:
    assert Head(action, **settings).sizes == sizes


def test_a_free_sigma_is_shared_and_one_of_the_state_comes_with_the_mean() -> None:
    free = Head(BOX).distribution(torch.zeros(3, 4), torch.full((4,), math.log(2.0)))
    assert isinstance(free, DiagNormal)
    assert free.log_std.exp().tolist() == pytest.approx([2.0] * 4)
    outputs = torch.cat([torch.ones(1, 4), torch.tensor([[0.0, 1.0, 50.0, -90.0]])], -1)
    state = Head(BOX, sigma="state", log_std_init=-1.0).distribution(outputs)
    assert isinstance(state, DiagNormal)
    assert state.mean.tolist() == [[1.0] * 4]
    # From log_std_init, and kept within what float32 can exponentiate and square.
    assert state.log_std.tolist() == [[-1.0, 0.0, 2.0, -20.0]]


def test_a_beta_is_unimodal_whatever_the_network_says() -> None:
    head = Head(BOX, "beta")
    parameters = head.distribution(torch.full((1, 8), -50.0)).parameters()
    assert parameters.min().item() >= 1.0
    assert head.distribution(torch.zeros(1, 8)).parameters()[0, 0].item() == pytest.approx(1.0 + math.log(2.0))


def test_a_mask_is_dealt_out_to_the_parts_in_order() -> None:
    head = Head(MIXED)
    mask = torch.tensor([[False, False, True, False, True, False, False, True]])
    p = head.distribution(torch.zeros(1, 12), torch.zeros(4), mask)
    action = p.sample(torch.full((1, 9), 1e-3))[0]
    assert action[0].item() == 2.0
    assert action[5:].tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("settings", [{}, {"sigma": "state"}, {"distribution": "beta"}])
def test_a_joint_distribution_comes_back_from_its_parameters(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    head = Head(MIXED, **settings)
    p = head.distribution(torch.randn(5, 3, head.sizes.outputs), torch.randn(4) if head.sizes.free else None)
    again = head.restore(p.parameters())
    torch.testing.assert_close(again.parameters(), p.parameters())
    action = p.sample(torch.rand(5, 3, head.sizes.noise).clamp(1e-6))
    torch.testing.assert_close(again.log_prob(action), p.log_prob(action))
