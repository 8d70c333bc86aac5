import numpy as np
import pytest

from common.errors import ProtocolError
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec
from services.replay_server.unroll import Unroll, check_unroll

SPEC = EnvSpec(
    "Maze-v0",
    (ArraySpec("place", "<f4", (2,)), ArraySpec("walls", "|u1", (3, 3))),
    ActionSpec("discrete", "<i8", (), (4,)),
)
T, B = 5, 3


def good() -> Arrays:
    return {
        "observation.place": np.zeros((T + 1, B, 2), np.float32),
        "observation.walls": np.zeros((T + 1, B, 3, 3), np.uint8),
        "first": np.zeros((T + 1, B), bool),
        "action": np.zeros((T, B), np.int64),
        "reward": np.zeros((T, B), np.float32),
        "terminated": np.zeros((T, B), bool),
        "truncated": np.zeros((T, B), bool),
        "valid": np.ones((T, B), bool),
        "extras.logp": np.zeros((T, B), np.float32),
        "extras.logits": np.zeros((T, B, 4), np.float32),
        "state.h": np.zeros((B, 16), np.float32),
        "reward_before": np.zeros(B, np.float32),
        "versions": np.zeros(T, np.int64),
        "final_index": np.array([0, T * B - 1], np.int32),
        "final.place": np.zeros((2, 2), np.float32),
        "final.walls": np.zeros((2, 3, 3), np.uint8),
        "episode_returns": np.zeros(2, np.float32),
        "episode_lengths": np.ones(2, np.int32),
    }


REQUIRED = [name for name in good() if not name.startswith(("extras", "state", "final"))]


def test_an_unroll_as_the_spec_says_is_taken() -> None:
    check_unroll(good(), SPEC)


def test_an_unroll_without_true_last_observations_is_taken() -> None:
    check_unroll({name: array for name, array in good().items() if not name.startswith("final")}, SPEC)


@pytest.mark.parametrize("name", REQUIRED)
def test_an_unroll_that_lacks_an_array_is_refused_by_name(name: str) -> None:
    arrays = good()
    del arrays[name]
    with pytest.raises(ProtocolError, match=name):
        check_unroll(arrays, SPEC)


@pytest.mark.parametrize("name", good())
def test_an_array_that_is_too_short_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        check_unroll({**good(), name: good()[name][:-1]}, SPEC)


@pytest.mark.parametrize("name", [name for name in good() if not name.startswith(("extras", "state"))])
def test_an_array_of_more_dimensions_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        check_unroll({**good(), name: good()[name][..., None]}, SPEC)


@pytest.mark.parametrize("name", [name for name in good() if not name.startswith(("extras", "state"))])
def test_an_array_of_another_dtype_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match=rf"{name} of an unroll is <f8|without reward"):
        check_unroll({**good(), name: good()[name].astype(np.float64)}, SPEC)


def test_a_mismatch_names_both_sides() -> None:
    arrays = {**good(), "observation.place": np.zeros((T + 1, B, 7), np.float32)}
    with pytest.raises(ProtocolError) as caught:
        check_unroll(arrays, SPEC)
    assert "is <f4 (6, 3, 7), the environment's spec says <f4 (6, 3, 2)" in str(caught.value)


@pytest.mark.parametrize("index", [-1, T * B])
def test_a_last_observation_of_no_step_is_refused(index: int) -> None:
    with pytest.raises(ProtocolError, match="final_index outside 0 to 14"):
        check_unroll({**good(), "final_index": np.array([0, index], np.int32)}, SPEC)


def test_an_index_of_last_observations_without_them_is_refused() -> None:
    arrays = {name: array for name, array in good().items() if not name.startswith("final.")}
    with pytest.raises(ProtocolError, match="without final"):
        check_unroll({**arrays, "final_index": np.zeros(0, np.int32)}, SPEC)


@pytest.mark.parametrize("name", ["", "rewards", "observation.place2", "final.nothing", "extrasx", "0/reward"])
def test_an_array_that_no_unroll_has_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match=f"an unroll with '{name}'"):
        check_unroll({**good(), name: np.zeros(3)}, SPEC)


@pytest.mark.parametrize("shape", [(0, B), (T, 0), (), (T,), (T, B, 1)])
def test_rewards_that_are_no_table_of_steps_and_environments_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="reward"):
        check_unroll({**good(), "reward": np.zeros(shape, np.float32)}, SPEC)


def test_the_bytes_of_an_unroll_are_those_of_its_arrays() -> None:
    arrays = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 2), np.int64)}
    assert Unroll("e/0", 1, 1, 0, arrays).nbytes == 12 + 32


def test_stacks_come_as_single_frames_and_true_last_ones_whole() -> None:
    walls = ArraySpec("walls", "|u1", (3, 3), stack=3)
    spec = EnvSpec("Maze-v0", (SPEC.observations[0], walls), SPEC.action)
    check_unroll(good() | {"observation.walls": np.zeros((T + 3, B, 3), np.uint8)}, spec)
    with pytest.raises(ProtocolError, match=r"observation\.walls .* says \|u1 \(8, 3, 3\)"):
        check_unroll(good(), spec)
