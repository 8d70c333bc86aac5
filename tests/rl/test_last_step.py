from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from common.errors import ProtocolError
from common.rl.actor import Seen
from common.rl.batch import to_batch
from common.rl.last_step import ActionCode, LastStep
from common.rl.policy import build_policy
from common.types import ActionSpec, Arrays, EnvSpec

DISCRETE = ActionSpec("discrete", "<i8", (), (3,))
BOX = ActionSpec("box", "<f4", (2,), low=(-1.0, 0.0), high=(1.0, 4.0))
PLATE = ActionSpec("box", "<f4", (2, 2), low=(-1.0, -1.0, -2.0, -1.0), high=(1.0, 1.0, 2.0, 1.0))
CODES: dict[str, tuple[ActionSpec, list[object], list[float]]] = {
    "discrete": (DISCRETE, [1], [0, 1, 0]),
    "multi_discrete": (ActionSpec("multi_discrete", "<i8", (1, 2), (3, 2)), [[[2, 0]]], [0, 0, 1, 1, 0]),
    "multi_binary": (ActionSpec("multi_binary", "<i8", (2,), (2, 2)), [[1, 0]], [1, 0]),
    "box": (BOX, [[0.5, 9.0]], [0.5, 1.0]),
    "unbounded": (replace(BOX, low=(-1.0, -float("inf"))), [[0.5, 9.0]], [0.5, 9.0]),
    "held": (replace(BOX, low=(-1.0, 4.0)), [[0.5, 4.0]], [0.5, 4.0]),
    "as wide as float32": (replace(BOX, low=(-1.0, -3e38), high=(1.0, 3e38)), [[0.5, 9.0]], [0.5, 9.0]),
    "tuple": (ActionSpec("tuple", "<f8", (3,), parts=(DISCRETE, BOX)), [[2.0, -1.0, 1.0]], [0, 0, 1, -1, -0.5]),
    "plate in a tuple": (
        ActionSpec("tuple", "<f8", (5,), parts=(PLATE, replace(PLATE, shape=(), low=(-1.0,), high=(3.0,)))),
        [[0.0, 2.0, -1.0, 3.0, 2.0]],
        [0.0, 1.0, -0.5, 1.0, 0.5],
    ),
}


@pytest.mark.parametrize("kind", sorted(CODES))
def test_an_action_is_written_as_small_numbers(kind: str) -> None:
    action, value, expected = CODES[kind]
    code = ActionCode(action)
    written = code(torch.tensor(value))
    assert written.dtype == torch.float32
    assert written[0].tolist() == expected
    assert code.width == len(expected)


def test_the_last_step_is_cut_to_one_and_zero_where_an_episode_begins() -> None:
    last = LastStep(DISCRETE, last_action=True, last_reward=True)
    reward, first = torch.tensor([7.0, -0.5, float("nan")]), torch.tensor([False, False, True])
    state = {"last_action": torch.tensor([2, 0, 1])}
    told = last.of_step(Seen({}, first, reward, state, torch.zeros(3, 1), torch.arange(3)))
    assert told.tolist() == [[0, 0, 1, 1.0], [1, 0, 0, -0.5], [0, 0, 0, 0]]
    assert last.width == 4


def test_a_batch_says_what_came_before_each_row(record: Callable[..., Arrays], cartpole: EnvSpec) -> None:
    policy = build_policy({"last_action": True, "last_reward": True}, cartpole, 0)
    arrays = record(policy, cartpole, 3, 1)
    arrays |= {"first": arrays["first"] & False, "action": arrays["action"] * 0}
    arrays["action"][1] = 1
    arrays["reward"][:, 0] = [0.25, 0.5, -3.0]
    arrays["reward_before"][:] = 0.125
    arrays["state.last_action"][:] = 1
    batch = to_batch(arrays, torch.device("cpu"))
    assert policy.last is not None
    rows = policy.last.of_rows(batch)[:, 0].tolist()
    assert rows == [[0, 1, 0.125], [1, 0, 0.25], [0, 1, 0.5], [1, 0, -1.0]]
    final = policy.last.of_final(replace(batch, final_index=torch.tensor([1]))).tolist()
    assert final == [rows[2]]
    with pytest.raises(ProtocolError, match="no 'reward_before'"):
        policy.last.of_rows(replace(batch, reward_before=None))
