import math

import pytest
import torch

from common.rl.ops.rewards import clipped

REWARD = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])


def test_rewards_are_cut_to_one() -> None:
    assert clipped(REWARD, "abs_one").tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_gains_count_for_more_than_losses() -> None:
    low, high = math.tanh(0.5), math.tanh(2.0)
    expected = [-0.3 * high, -0.3 * low, 0.0, 5.0 * low, 5.0 * high]
    assert clipped(REWARD, "soft_asymmetric").tolist() == pytest.approx(expected)


def test_rewards_stay_as_they_are_without_a_clip() -> None:
    assert clipped(REWARD, "none") is REWARD
