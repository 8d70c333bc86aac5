from __future__ import annotations

import numpy as np
import pytest

from common.errors import ProtocolError
from common.messages import Batch
from common.rl.stacks import stack
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec
from services.learner_server.staging import in_turn, join, mix, split, stage


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


def drawn(priorities: list[float], picks: list[int], rewards: list[float], **more: np.ndarray) -> Batch:
    """What a prioritized shard of items with these `priorities` (exponent 1) answers for its items `picks`."""
    mass = sum(priorities)
    arrays = {
        "reward": np.array(rewards, np.float32),
        "keys": np.array(picks),
        "probabilities": np.array(priorities)[picks] / mass,
        "counters": np.zeros((1, 4), np.int64),
    }
    return Batch(0, len(priorities), mass, 0, (), arrays | more)


def test_items_of_two_shards_have_the_relative_probabilities_they_have_in_one_table() -> None:
    # Half of the draw goes to each, of 3 items in all.
    batch = join([(drawn([1.0, 3.0], [0, 1, 1], [10, 11, 11]), 3 / 2), (drawn([4.0], [0], [20]), 3 / 2)])
    assert batch["reward"].tolist() == [10, 11, 11, 20]
    # One table of 3 items with priorities 1, 3 and 4.
    assert batch["relative"].tolist() == [3 * 1 / 8, 3 * 3 / 8, 3 * 3 / 8, 3 * 4 / 8]
    assert batch.keys() == {"reward", "relative"}


def test_what_was_drawn_for_several_batches_is_dealt_out_so_that_each_has_its_share_of_all_strata() -> None:
    dealt = in_turn({"reward": np.arange(7), "observation.obs": np.arange(14).reshape(7, 2)}, 3)
    assert [batch["reward"].tolist() for batch in dealt] == [[0, 3, 6], [1, 4], [2, 5]]
    assert dealt[1]["observation.obs"].tolist() == [[2, 3], [8, 9]]
    assert [batch["reward"].tolist() for batch in in_turn({"reward": np.arange(2)}, 3)] == [[0], [1]]
    assert all(x.flags.c_contiguous for batch in dealt for x in batch.values())


def test_sequences_are_dealt_out_by_column_with_their_states_and_odds() -> None:
    drawn = {
        "reward": np.arange(8).reshape(2, 4),
        "state.h": np.arange(4),
        "reward_before": np.arange(10, 14),
        "relative": np.arange(20, 24),
    }
    first, second = in_turn(drawn, 2)
    assert {name: x.tolist() for name, x in first.items()} == {
        "reward": [[0, 2], [4, 6]],
        "state.h": [0, 2],
        "reward_before": [10, 12],
        "relative": [20, 22],
    }
    assert second["reward"].tolist() == [[1, 3], [5, 7]]


def test_uniform_draws_are_as_likely_as_any() -> None:
    assert join([(drawn([1.0] * 7, [3, 6], [0, 0]), 7.0)])["relative"].tolist() == [1.0, 1.0]


def test_the_mask_of_sequences_says_which_steps_are_valid() -> None:
    sequence = {
        "reward": np.zeros((3, 2), np.float32),
        "mask": np.array([[True, True], [True, False], [False, False]]),
        "state.h": np.ones((2, 4), np.float32),
    }
    batch = join([(drawn([1.0, 1.0], [0, 1], [], **sequence), 2.0)] * 2)
    assert batch["valid"].tolist() == [[True] * 4, [True, False, True, False], [False] * 4]
    assert batch["state.h"].shape == (4, 4)
    assert batch["relative"].tolist() == [1.0] * 4


def test_stored_columns_are_mixed_in_with_the_versions_they_were_acted_with() -> None:
    stored = unroll(300, envs=3)
    stored["versions"] = np.array([[1, 2, 3], [1, 2, 4]])
    del stored["episode_returns"], stored["episode_lengths"]
    batch = mix([unroll(100, envs=1)], [{**stored, "keys": np.zeros(3), "probabilities": np.zeros(3)}])
    assert batch["reward"].tolist() == [[100, 300, 301, 302], [110, 310, 311, 312]]
    assert batch["online"].tolist() == [True, False, False, False]
    assert batch["versions"].tolist() == [[5, 1, 2, 3], [6, 1, 2, 4]]
    assert "keys" not in batch


def test_stacks_are_built_of_single_frames_with_zeros_before_an_episodes_first() -> None:
    env = EnvSpec("x", (ArraySpec("obs", "|u1", (3, 1), stack=3),), ActionSpec("discrete", "<i8", (), n=(2,)))
    frames = np.array([[0, 8], [0, 9], [1, 10], [2, 11], [3, 20], [4, 21]], np.uint8)[..., None]
    first = np.array([[True, False], [False, False], [False, True], [False, False]])
    batch = {"observation.obs": frames, "first": first}
    stack(batch, env)
    assert batch["observation.obs"][:, 0, :, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert batch["observation.obs"][:, 1, :, 0].tolist() == [[8, 9, 10], [9, 10, 11], [0, 0, 20], [0, 20, 21]]
