"""TQC: which quantiles of the targets are dropped, and what that makes of SAC's losses."""

from typing import Any

import pytest
import torch
from by_hand import BOX, build, critics, transitions

from common.rl.algorithms.sac import truncated

COLD: dict[str, Any] = {"temperature": 1e-6, "learn_temperature": False}


def test_the_largest_of_all_critics_together_are_dropped() -> None:
    # Two critics of three quantiles: one per critic dropped is two of six, here both the first critic's.
    quantiles = torch.tensor([[[5.0, 9.0, 8.0]], [[1.0, 7.0, 2.0]]])
    assert truncated(quantiles, 1).tolist() == [[1.0, 2.0, 5.0, 7.0]]
    assert truncated(quantiles, 2).tolist() == [[1.0, 2.0]]
    assert truncated(quantiles, 0).tolist() == [[1.0, 2.0, 5.0, 7.0, 8.0, 9.0]]


def test_each_transition_drops_its_own() -> None:
    quantiles = torch.tensor([[[1.0, 2.0], [30.0, 40.0]], [[3.0, 4.0], [10.0, 20.0]]])
    assert truncated(quantiles, 1).tolist() == [[1.0, 2.0], [10.0, 20.0]]


def test_the_loss_is_the_quantile_huber_loss_against_what_was_kept() -> None:
    online, target = critics([[0.0, 2.0], [0.0, 0.0]]), critics([[1.0, 9.0], [3.0, 7.0]])
    _, tqc = build("sac", BOX, [0.0, 0.0], online, target, quantiles=2, drop=1, **COLD)
    metrics = tqc.learn(transitions([0.0], [1.0], [1.0]), 0.0)
    # y is 2 and 4. At the shares 1/4 and 3/4:
    # 0 and 2: ¼ · (1.5 + 3.5) / 2, and ¾ · (0 + 1.5) / 2; 0 and 0: (¼ + ¾) · (1.5 + 3.5) / 2
    assert metrics["critic_loss"] == pytest.approx(0.625 + 0.5625 + 2.5, abs=1e-4)
    # The mean target is 3, the critics' means are 1 and 0.
    assert tqc.priorities.tolist() == pytest.approx([2.5], abs=1e-4)
    assert metrics["actor_loss"] == pytest.approx(-0.5, abs=1e-4)


def test_a_quantile_goes_to_its_share_of_the_targets() -> None:
    # All above every target: each falls; all below: each rises.
    for constant, sign in ((50.0, -1.0), (-50.0, 1.0)):
        online = critics([[constant, constant], [constant, constant]])
        _, tqc = build("sac", BOX, [0.0, 0.0], online, critics([[0.0, 1.0], [2.0, 3.0]]), quantiles=2, drop=1, **COLD)
        tqc.learn(transitions([0.0], [0.0], [1.0]), 0.0)
        constants = tqc.state_dict()["critics"][-4:]
        assert constants.tolist() == pytest.approx([constant + sign * 0.01] * 4, abs=1e-4)
