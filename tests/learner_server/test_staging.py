from __future__ import annotations

import numpy as np
import pytest

from common.errors import ProtocolError
from common.types import Arrays
from services.learner_server.staging import split, stage


def unroll(start: int, envs: int, steps: int = 2, version: int = 5) -> Arrays:
    """An unroll whose numbers say where they come from: step t of environment b has reward start + 10 t + b."""
    reward = (start + 10 * np.arange(steps)[:, None] + np.arange(envs)).astype(np.float32)
    arrays = {
        "observation.obs": np.zeros((steps + 1, envs, 3), np.float32),
        "reward": reward,
        "state.h": np.full((envs, 4), start, np.float32),
        "reward_before": np.full(envs, start, np.float32),
        "versions": np.arange(version, version + steps),
        "episode_returns": np.zeros(1, np.float32),
        "episode_lengths": np.zeros(1, np.int32),
    }
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def test_unrolls_lie_side_by_side_in_fresh_arrays() -> None:
    batch = stage([unroll(100, envs=2), unroll(200, envs=1, version=7)])
    assert batch["reward"].tolist() == [[100, 101, 200], [110, 111, 210]]
    assert batch["observation.obs"].shape == (3, 3, 3)
    assert batch["reward_before"].tolist() == [100, 100, 200]
    assert batch["state.h"][:, 0].tolist() == [100, 100, 200]
    assert batch["versions"].tolist() == [[5, 5, 7], [6, 6, 8]]
    assert batch["reward"].flags.writeable
    assert "episode_returns" not in batch


def test_true_last_observations_move_with_their_columns() -> None:
    first, second = unroll(100, envs=2), unroll(200, envs=1)
    # Step 1 of environment 1 of the first (1 * 2 + 1), step 0 of environment 0 of the second.
    first |= {"final_index": np.array([3], np.int32), "final.obs": np.full((1, 3), 7, np.float32)}
    second |= {"final_index": np.array([0], np.int32), "final.obs": np.full((1, 3), 8, np.float32)}
    batch = stage([first, second])
    assert batch["final_index"].tolist() == [1 * 3 + 1, 0 * 3 + 2]
    assert batch["final.obs"][:, 0].tolist() == [7, 8]


def test_one_unroll_with_last_observations_beside_one_without_is_no_contradiction() -> None:
    second = unroll(200, envs=1) | {"final_index": np.array([1], np.int32), "final.obs": np.ones((1, 3), np.float32)}
    assert stage([unroll(100, envs=2), second])["final_index"].tolist() == [1 * 3 + 2]


def test_unrolls_of_different_length_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"unrolls of \[2, 3\] steps"):
        stage([unroll(1, envs=1), unroll(2, envs=1, steps=3)])


def test_a_batch_is_split_by_the_number_before_the_slash() -> None:
    a, b, counters = np.zeros(1), np.ones(1), np.zeros((1, 4))
    assert split({"counters": counters, "0/reward": a, "1/reward": b}, 2) == [{"reward": a}, {"reward": b}]
