"""The unroll's literal contents for scripted steps, and what carries over from one unroll to the next."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ProtocolError
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec, PolicySpec
from services.env_server.backends import NO_FINALS, Finals
from services.env_server.rollout import Rollout

SPEC = EnvSpec("Scripted", (ArraySpec("obs", "<f4", (1,)),), ActionSpec("discrete", "<i8", (), n=(9,)), frame_skip=4)
STATELESS = PolicySpec()
POLICY = PolicySpec((ArraySpec("value", "<f4", ()),), (ArraySpec("h", "<f4", (2,)),))

Pair = tuple[float, float]


def started(policy: PolicySpec = STATELESS, unroll: int = 3) -> Rollout:
    rollout = Rollout(SPEC, policy, unroll, 2)
    rollout.observation_row()["obs"][:, 0] = (0, 100)
    rollout.begin()
    return rollout


def step(
    rollout: Rollout,
    seen: Pair,
    reward: Pair = (1, 10),
    terminated: Pair = (0, 0),
    truncated: Pair = (0, 0),
    valid: Pair = (1, 1),
    last: dict[int, float] | None = None,
) -> None:
    """One scripted step; `last` maps environments to their true last observations."""
    rollout.act({"action": np.array([1, 2])}, 0)
    targets = rollout.targets()
    targets.observation["obs"][:, 0] = seen
    targets.reward[:] = reward
    targets.terminated[:] = terminated
    targets.truncated[:] = truncated
    targets.valid[:] = valid
    if last is None:
        rollout.advance(NO_FINALS)
    else:
        observation = {"obs": np.array(list(last.values()), np.float32).reshape(-1, 1)}
        rollout.advance(Finals(np.array(list(last), np.int32), observation))


def literal(arrays: Arrays, *names: str) -> list[object]:
    return [arrays[name].tolist() for name in names]


def test_an_unroll_without_an_end_holds_every_array_of_the_contract() -> None:
    rollout = started()
    for t in range(3):
        step(rollout, (t + 1, t + 101), reward=(t, 10 * t))
    assert rollout.complete
    arrays = rollout.finish()
    assert {name: (value.tolist(), value.dtype.str) for name, value in arrays.items()} == {
        "observation.obs": ([[[0], [100]], [[1], [101]], [[2], [102]], [[3], [103]]], "<f4"),
        "first": ([[True, True], [False, False], [False, False], [False, False]], "|b1"),
        "action": ([[1, 2], [1, 2], [1, 2]], "<i8"),
        "reward": ([[0, 0], [1, 10], [2, 20]], "<f4"),
        "terminated": ([[False, False]] * 3, "|b1"),
        "truncated": ([[False, False]] * 3, "|b1"),
        "valid": ([[True, True]] * 3, "|b1"),
        "reward_before": ([0, 0], "<f4"),
        "versions": ([0, 0, 0], "<i8"),
        "episode_returns": ([], "<f4"),
        "episode_lengths": ([], "<i4"),
    }


@pytest.mark.parametrize(
    ("end", "first", "index", "returned", "length"),
    [
        (0, [True, True, False, False], [1], 10, 1),
        (1, [True, False, True, False], [3], 20, 2),
        (2, [True, False, False, True], [5], 30, 3),
    ],
)
def test_a_same_step_reset_at_each_position(
    end: int, first: list[bool], index: list[int], returned: float, length: int
) -> None:
    rollout = started()
    for t in range(3):
        if t == end:
            step(rollout, (t + 1, 200), truncated=(0, 1), last={1: 150 + t})
        else:
            step(rollout, (t + 1, t + 101))
    arrays = rollout.finish()
    assert arrays["first"][:, 1].tolist() == first
    assert arrays["first"][:, 0].tolist() == [True, False, False, False]
    assert literal(arrays, "final_index", "final.obs") == [index, [[150 + end]]]
    assert arrays["final_index"].dtype == np.int32
    assert literal(arrays, "episode_returns", "episode_lengths") == [[returned], [length]]
    assert arrays["truncated"][end].tolist() == [False, True]
    assert rollout.steps == 6


@pytest.mark.parametrize(
    ("end", "first", "valid", "steps"),
    [
        (0, [True, False, True, False], [True, False, True], 5),
        (1, [True, False, False, True], [True, True, False], 5),
        (2, [True, False, False, False], [True, True, True], 6),
    ],
)
def test_a_next_step_reset_at_each_position(end: int, first: list[bool], valid: list[bool], steps: int) -> None:
    rollout = started()
    for t in range(3):
        if t == end:
            step(rollout, (t + 1, 150), terminated=(0, 1))
        elif t == end + 1:
            step(rollout, (t + 1, 200), reward=(1, 0), valid=(1, 0))
        else:
            step(rollout, (t + 1, t + 101))
    arrays = rollout.finish()
    assert arrays["first"][:, 1].tolist() == first
    assert arrays["valid"][:, 1].tolist() == valid
    assert arrays["observation.obs"][end + 1].tolist() == [[end + 1], [150]]
    assert "final_index" not in arrays
    assert "final.obs" not in arrays
    assert literal(arrays, "episode_returns", "episode_lengths") == [[10 * (end + 1)], [end + 1]]
    assert rollout.steps == steps


def test_a_reset_only_step_after_the_unroll_is_told_by_the_next_unroll() -> None:
    rollout = started(unroll=1)
    step(rollout, (1, 150), terminated=(0, 1))
    rollout.finish()
    step(rollout, (2, 200), reward=(1, 0), valid=(1, 0))
    reset = rollout.finish()
    assert literal(reset, "first", "valid") == [[[False, False], [False, True]], [[True, False]]]
    assert reset["observation.obs"][:, 1].tolist() == [[150], [200]]
    step(rollout, (3, 201), terminated=(1, 1))
    arrays = rollout.finish()
    assert arrays["first"].tolist() == [[False, True], [False, False]]
    assert literal(arrays, "episode_returns", "episode_lengths") == [[3, 10], [3, 1]]
    assert rollout.steps == 5


def test_the_last_row_its_reward_and_its_first_flag_open_the_next_unroll() -> None:
    rollout = started(unroll=1)
    step(rollout, (1, 200), reward=(3, 30), terminated=(0, 1), last={1: 150})
    rollout.finish()
    request = rollout.request()
    assert literal(request, "observation.obs", "reward", "first") == [[[1], [200]], [3, 30], [False, True]]
    step(rollout, (2, 201))
    arrays = rollout.finish()
    assert literal(arrays, "reward_before", "first") == [[3, 30], [[False, True], [False, False]]]
    assert arrays["observation.obs"].tolist() == [[[1], [200]], [[2], [201]]]
    assert "final_index" not in arrays
    assert arrays["episode_returns"].size == 0


def test_the_finals_of_several_steps_are_listed_in_order() -> None:
    rollout = started()
    step(rollout, (50, 200), truncated=(1, 0), terminated=(0, 1), last={0: 41, 1: 141})
    step(rollout, (51, 201))
    step(rollout, (60, 202), truncated=(1, 0), last={0: 42})
    arrays = rollout.finish()
    assert literal(arrays, "final_index", "final.obs") == [[0, 1, 4], [[41], [141], [42]]]
    assert literal(arrays, "episode_returns", "episode_lengths") == [[1, 10, 2], [1, 1, 2]]


def test_a_request_carries_the_reward_that_came_with_the_observation() -> None:
    rollout = started()
    assert literal(rollout.request(), "observation.obs", "reward", "first") == [[[0], [100]], [0, 0], [True, True]]
    step(rollout, (1, 200), reward=(3, 30), terminated=(0, 1), last={1: 150})
    request = rollout.request()
    assert literal(request, "observation.obs", "reward", "first") == [[[1], [200]], [3, 30], [False, True]]
    assert sorted(request) == ["first", "observation.obs", "reward"]


def test_state_and_extras_and_versions_ride_along() -> None:
    rollout = started(POLICY, unroll=2)
    assert rollout.request()["state.h"].tolist() == [[0, 0], [0, 0]]
    for t in range(4):
        if rollout.complete:
            before = rollout.finish()
        answer = {
            "action": np.array([t, t + 1]),
            "extras.value": np.array([t, -t], np.float32),
            "state.h": np.full((2, 2), t + 1, np.float32),
        }
        assert rollout.act(answer, 7 + t).tolist() == [t, t + 1]
        answer["state.h"].setflags(write=False)
        targets = rollout.targets()
        targets.observation["obs"][:] = 0
        for array in (targets.reward, targets.terminated, targets.truncated):
            array[:] = 0
        targets.valid[:] = True
        rollout.advance(NO_FINALS)
        assert rollout.request()["state.h"].tolist() == [[t + 1, t + 1]] * 2
    after = rollout.finish()
    names = ("state.h", "extras.value", "versions", "action")
    assert literal(before, *names) == [[[0, 0], [0, 0]], [[0, 0], [1, -1]], [7, 8], [[0, 1], [1, 2]]]
    assert literal(after, *names) == [[[2, 2], [2, 2]], [[2, -2], [3, -3]], [9, 10], [[2, 3], [3, 4]]]


def test_a_finished_unroll_is_never_written_again() -> None:
    rollout = started(unroll=2)
    for t in range(2):
        step(rollout, (t, t))
    sent = rollout.finish()
    kept = {name: value.copy() for name, value in sent.items()}
    for t in range(2):
        step(rollout, (t + 7, t + 7), reward=(7, 7), terminated=(1, 1), last={0: 7, 1: 7})
    rollout.finish()
    for name, value in kept.items():
        np.testing.assert_array_equal(sent[name], value)


def test_counters_are_totals_of_finished_unrolls() -> None:
    rollout = started(unroll=2)
    step(rollout, (1, 1), terminated=(1, 0))
    step(rollout, (0, 2), reward=(0, 1), valid=(0, 1))
    assert (rollout.steps, rollout.frames, rollout.number) == (0, 0, 0)
    rollout.finish()
    assert (rollout.steps, rollout.frames, rollout.number) == (3, 12, 1)
    step(rollout, (1, 3))
    assert not rollout.complete
    step(rollout, (2, 4))
    rollout.finish()
    assert (rollout.steps, rollout.frames, rollout.number) == (7, 28, 2)


def test_a_return_is_summed_in_double_precision() -> None:
    rollout = started(unroll=1)
    for reward in (2.0**24, 1, 1, 1):
        step(rollout, (0, 0), reward=(reward, 0))
        rollout.finish()
    step(rollout, (0, 0), reward=(1, 0), terminated=(1, 0), last={0: 0})
    assert rollout.finish()["episode_returns"].tolist() == [2.0**24 + 4]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action": np.zeros(3, np.int64)}, r"answered action int64\[3\] .* expects action int64\[2\]"),
        ({"action": np.zeros(2, np.int32)}, r"answered action int32\[2\] .* expects action int64\[2\]"),
        ({"extras.value": None}, r"answered nothing .* expects extras.value float32\[2\]"),
        ({"state.h": np.zeros((2, 3), np.float32)}, r"answered state.h float32\[2, 3\] .* state.h float32\[2, 2\]"),
        ({"extras.q": np.zeros(2, np.float32)}, r"answered extras.q float32\[2\] .* expects nothing"),
    ],
)
def test_an_answer_of_another_job_is_refused(change: dict[str, np.ndarray | None], said: str) -> None:
    rollout = started(POLICY)
    answer: dict[str, np.ndarray | None] = {
        "action": np.zeros(2, np.int64),
        "extras.value": np.zeros(2, np.float32),
        "state.h": np.zeros((2, 2), np.float32),
    }
    arrays = {name: value for name, value in (answer | change).items() if value is not None}
    with pytest.raises(ProtocolError, match=said):
        rollout.act(arrays, 0)


STACKED = EnvSpec("Stacked", (ArraySpec("obs", "|u1", (3, 1), stack=3),), ActionSpec("discrete", "<i8", (), n=(2,)))


def see(rollout: Rollout, *stacks: list[int]) -> None:
    """One step to the `stacks` of its two environments; an episode that opens has zeros before its first frame."""
    rollout.act({"action": np.array([1, 1])}, 0)
    targets = rollout.targets()
    targets.observation["obs"][..., 0] = stacks
    targets.reward[:] = 1
    targets.terminated[:] = targets.truncated[:] = False
    targets.valid[:] = True
    rollout.advance(NO_FINALS)


def test_an_unroll_of_stacks_carries_each_frame_once_and_the_next_one_begins_with_a_whole_stack() -> None:
    rollout = Rollout(STACKED, STATELESS, 2, 2)
    rollout.observation_row()["obs"][..., 0] = [[0, 0, 1], [0, 0, 101]]
    rollout.begin()
    assert rollout.request()["observation.obs"][..., 0].tolist() == [[0, 0, 1], [0, 0, 101]]
    see(rollout, [0, 1, 2], [0, 101, 102])
    assert rollout.request()["observation.obs"][..., 0].tolist() == [[0, 1, 2], [0, 101, 102]]
    see(rollout, [1, 2, 3], [0, 0, 111])
    sent = rollout.finish()["observation.obs"]
    assert sent[..., 0].T.tolist() == [[0, 0, 1, 2, 3], [0, 0, 101, 102, 111]]
    assert rollout.request()["observation.obs"][..., 0].tolist() == [[1, 2, 3], [0, 0, 111]]
    see(rollout, [2, 3, 4], [0, 111, 112])
    see(rollout, [3, 4, 5], [111, 112, 113])
    assert rollout.finish()["observation.obs"][..., 0].T.tolist() == [[1, 2, 3, 4, 5], [0, 0, 111, 112, 113]]


def test_a_request_of_stacks_is_not_written_again_before_it_was_answered() -> None:
    rollout = Rollout(STACKED, STATELESS, 4, 2)
    rollout.observation_row()["obs"][..., 0] = 1
    rollout.begin()
    sent = rollout.request()["observation.obs"]
    see(rollout, [2, 2, 2], [2, 2, 2])
    assert sent[..., 0].tolist() == [[1, 1, 1], [1, 1, 1]]
