import numpy as np
import pytest
import torch

from common.errors import ProtocolError
from common.rl.batch import to_batch
from common.types import Arrays

CPU = torch.device("cpu")


@pytest.fixture
def arrays() -> Arrays:
    flags = np.zeros((3, 2), bool)
    return {
        "observation.obs": np.zeros((4, 2, 5), np.float32),
        "first": np.zeros((4, 2), bool),
        "action": np.zeros((3, 2), np.int64),
        "reward": np.arange(6, dtype=np.float32).reshape(3, 2),
        "terminated": flags,
        "truncated": flags.copy(),
        "extras.log_prob": np.zeros((3, 2), np.float32),
    }


def test_writable_arrays_are_not_copied_and_read_only_ones_are(arrays: Arrays) -> None:
    arrays["action"].flags.writeable = False
    batch = to_batch(arrays, CPU)
    arrays["reward"][0, 0] = 7.0
    assert batch.reward[0, 0].item() == 7.0
    assert not np.shares_memory(batch.action.numpy(), arrays["action"])


def test_absent_or_full_validity_is_none_and_all_steps_count(arrays: Arrays) -> None:
    assert to_batch(arrays, CPU).valid is None
    assert to_batch({**arrays, "valid": np.ones((3, 2), bool)}, CPU).valid is None
    assert to_batch(arrays, CPU).steps == 6


def test_invalid_steps_are_not_counted(arrays: Arrays) -> None:
    valid = np.ones((3, 2), bool)
    valid[1, 0] = False
    assert to_batch({**arrays, "valid": valid}, CPU).steps == 5


def test_empty_final_observations_are_none(arrays: Arrays) -> None:
    empty = {"final_index": np.zeros(0, np.int32), "final.obs": np.zeros((0, 5), np.float32)}
    batch = to_batch({**arrays, **empty}, CPU)
    assert batch.final_index is None
    assert batch.final == {}


def test_final_observations_keep_their_index(arrays: Arrays) -> None:
    batch = to_batch({**arrays, "final_index": np.array([3], np.int32), "final.obs": np.ones((1, 5))}, CPU)
    assert batch.final_index is not None
    assert batch.final_index.dtype == torch.int64
    assert batch.final["obs"].shape == (1, 5)


def test_a_missing_array_is_named(arrays: Arrays) -> None:
    del arrays["truncated"]
    with pytest.raises(ProtocolError, match="no 'truncated'"):
        to_batch(arrays, CPU)


def test_what_did_not_come_is_none_and_what_did_is_there(arrays: Arrays) -> None:
    batch = to_batch(arrays, CPU)
    assert (batch.reward_before, batch.online) == (None, None)
    more = {"reward_before": np.array([1, 2], np.float32), "online": np.array([True, False])}
    batch = to_batch({**arrays, **more}, CPU)
    assert batch.reward_before is not None
    assert batch.online is not None
    assert batch.reward_before.tolist() == [1.0, 2.0]
    assert batch.online.tolist() == [True, False]


def test_columns_keep_their_final_observations_and_leave_those_of_others(arrays: Arrays) -> None:
    more = {
        "valid": np.array([[True, False]] * 3),
        "final_index": np.array([1, 2, 5], np.int32),
        "final.obs": np.arange(15, dtype=np.float32).reshape(3, 5),
        "state.h": np.array([[1.0], [2.0]], np.float32),
        "reward_before": np.array([1, 2], np.float32),
        "online": np.array([True, False]),
    }
    batch = to_batch({**arrays, **more}, CPU)
    turned = batch.columns(torch.tensor([1, 0]))
    assert turned.reward.tolist() == [[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]]
    assert turned.observation["obs"].shape == (4, 2, 5)
    assert turned.valid is not None
    assert turned.valid.tolist() == [[False, True]] * 3
    assert turned.state["h"].tolist() == [[2.0], [1.0]]
    assert turned.reward_before is not None
    assert turned.reward_before.tolist() == [2.0, 1.0]
    assert turned.final_index is not None
    # Steps (0, 1), (1, 0) and (2, 1) are now (0, 0), (1, 1) and (2, 0).
    assert turned.final_index.tolist() == [0, 3, 4]
    first = batch.columns(torch.tensor([0]))
    assert first.final_index is not None
    assert (first.final_index.tolist(), first.final["obs"].tolist()) == ([1], [[5, 6, 7, 8, 9]])
    assert first.online is not None
    assert first.online.tolist() == [True]


def test_columns_without_a_final_observation_have_none(arrays: Arrays) -> None:
    batch = to_batch({**arrays, "final_index": np.array([3], np.int32), "final.obs": np.ones((1, 5))}, CPU)
    assert batch.columns(torch.tensor([0])).final_index is None
    assert batch.columns(torch.tensor([0])).final == {}
