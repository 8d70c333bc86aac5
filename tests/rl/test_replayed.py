import numpy as np
import pytest
import torch

from common.errors import ProtocolError
from common.rl.replayed import importance, to_transitions
from common.types import Arrays

CPU = torch.device("cpu")


@pytest.fixture
def arrays() -> Arrays:
    return {
        "observation.obs": np.zeros((3, 5), np.float32),
        "next_observation.obs": np.ones((3, 5), np.float32),
        "action": np.array([0, 1, 0]),
        "reward": np.arange(3, dtype=np.float32),
        "discount": np.array([0.9, 0.0, 0.9], np.float32),
        "extras.q_taken": np.zeros(3, np.float32),
        "relative": np.ones(3, np.float32),
    }


def test_arrays_become_tensors_by_name_without_a_copy(arrays: Arrays) -> None:
    batch = to_transitions(arrays, CPU)
    arrays["reward"][2] = 7.0
    assert batch.reward.tolist() == [0.0, 1.0, 7.0]
    assert batch.observation["obs"].sum() == 0
    assert batch.next_observation["obs"].sum() == 15
    assert list(batch.extras) == ["q_taken"]
    assert batch.relabelled is None


def test_exchanged_goals_are_told_apart(arrays: Arrays) -> None:
    flags = np.array([True, False, True])
    relabelled = to_transitions({**arrays, "relabelled": flags}, CPU).relabelled
    assert relabelled is not None
    assert relabelled.tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["action", "reward", "discount", "relative"])
def test_a_missing_array_is_named(name: str, arrays: Arrays) -> None:
    del arrays[name]
    with pytest.raises(ProtocolError, match=f"no '{name}'"):
        to_transitions(arrays, CPU)


def test_importance_weights_on_literals() -> None:
    relative = torch.tensor([1.0, 4.0, 0.25])
    assert importance(relative, 0.5, 0.0).tolist() == [0.5, 0.25, 1.0]
    assert importance(relative, 0.0, 0.5).tolist() == [0.5, 0.25, 1.0]
    assert importance(relative, 0.5, 1.0).tolist() == [0.25, 0.0625, 1.0]
    assert importance(relative, 0.5, 1.5).tolist() == [0.25, 0.0625, 1.0]
    assert importance(relative, 0.0, 0.0).tolist() == [1.0, 1.0, 1.0]
