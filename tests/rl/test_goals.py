"""Hindsight on the learner's side: relabelled items get the reward of their new goal, and no other does."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import BOX, transitions

from common.errors import ConfigError, ProtocolError
from common.rl.algorithms.base import OptimizerConfig
from common.rl.goals import Goals
from common.rl.registry import algorithm_class
from common.rl.replayed import Transitions
from common.types import ArraySpec, EnvSpec


def drawn(relabelled: list[bool] | None, achieved: list[float], desired: list[float]) -> Transitions:
    """Gives four items of reward 7, the second and the last terminal."""
    goals = {"achieved_goal": torch.tensor(achieved).view(4, 1), "desired_goal": torch.tensor(desired).view(4, 1)}
    batch = transitions([0.0] * 4, [7.0] * 4, [0.9, 0.0, 0.9, 0.0])
    where = None if relabelled is None else torch.tensor(relabelled)
    # What was achieved before the step is of no account.
    before = {**goals, "achieved_goal": torch.full((4, 1), 99.0)}
    return replace(batch, observation=before, next_observation=goals, relabelled=where)


def test_relabelled_items_alone_get_the_reward_of_their_goal() -> None:
    batch = drawn([True, False, True, False], [1.0, 1.0, 1.0, 1.0], [1.2, 1.2, 5.0, 5.0])
    found = Goals("by_hand:sparse").relabel(batch)
    assert found.reward.tolist() == [0.0, 7.0, -1.0, 7.0]
    assert found.reward.dtype == torch.float32
    assert batch.reward.tolist() == [7.0] * 4


def test_where_rewards_end_nothing_a_relabelled_item_goes_on() -> None:
    batch = drawn([False, True, True, False], [1.0] * 4, [5.0, 5.0, 1.0, 1.0])
    found = Goals("by_hand:sparse").relabel(batch)
    assert found.discount.tolist() == pytest.approx([0.9, 0.9, 0.9, 0.0])


def test_a_goal_that_ends_the_episode_ends_it_for_relabelled_items() -> None:
    batch = drawn([True, True, False, False], [1.0] * 4, [1.0, 5.0, 1.0, 5.0])
    found = Goals("by_hand:final").relabel(batch)
    assert found.reward.tolist() == [1.0, 0.0, 7.0, 7.0]
    assert found.discount.tolist() == pytest.approx([0.0, 0.9, 0.9, 0.0])


def test_a_batch_of_a_table_without_hindsight_is_left_alone() -> None:
    batch = drawn(None, [1.0] * 4, [1.0] * 4)
    assert Goals("").relabel(batch) is batch
    assert Goals("by_hand:sparse").relabel(batch) is batch


def test_what_does_not_fit_is_refused_by_name() -> None:
    batch = drawn([True] * 4, [1.0] * 4, [1.0] * 4)
    with pytest.raises(ConfigError, match=r"algorithm\.reward is empty"):
        Goals("").relabel(batch)
    with pytest.raises(ConfigError, match=r"by_hand:one_number.* gave \(1,\) for \(4,\) items"):
        Goals("by_hand:one_number").relabel(batch)
    with pytest.raises(ConfigError, match=r"algorithm\.reward: 'by_hand:missing' cannot be loaded"):
        Goals("by_hand:missing")
    with pytest.raises(ProtocolError, match="no observation 'achieved_goal'"):
        Goals("by_hand:sparse").relabel(replace(batch, next_observation={"obs": torch.zeros(4, 1)}))


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
def test_every_algorithm_learns_from_the_rewards_of_the_new_goals(name: str) -> None:
    goals = tuple(ArraySpec(entry, "<f4", (1,)) for entry in ("achieved_goal", "desired_goal"))
    spec, options = EnvSpec("goals", goals, BOX), {"reward": "by_hand:sparse"}
    batch = drawn([True] * 4, [1.0] * 4, [5.0] * 4)
    rewarded = replace(batch, reward=torch.full((4,), -1.0), discount=torch.full((4,), 0.9), relabelled=None)
    found: list[Any] = []
    for each in (batch, rewarded):
        actor = algorithm_class(name).make_actor(options, {"hidden": [8]}, spec, 0)
        algorithm = algorithm_class(name)(options, OptimizerConfig(), actor, 0)
        found.append(algorithm.learn(each, 0.0))
    assert found[0] == found[1]
