"""The Gymnasium backend gives what the plain environments give when stepped by hand, and says what it cannot do."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import ActionSpec, ArraySpec, PolicySpec
from services.control.stepping import step_rows
from services.env_server.backends import Backend, make_backend
from services.env_server.backends import gymnasium as gymnasium_backend
from services.env_server.backends.gymnasium import VectorBackend
from services.env_server.backends.spaces import action_putter, action_rows, action_spec, observation_leaves
from services.env_server.rollout import Rollout

HERE = __name__


class Maze(gymnasium.Env[Any, Any]):
    """A Dict observation (nested, with categories from 5) and two-part actions; an episode lasts 3 or 5 steps."""

    observation_space = spaces.Dict(
        {
            "goal": spaces.Discrete(4, start=5),
            "sight": spaces.Dict({"map": spaces.Box(0, 255, (2, 2), np.uint8), "near": spaces.MultiDiscrete([3, 2])}),
        }
    )
    action_space = spaces.MultiDiscrete([3, 2], start=[10, 20])

    def __init__(self, length: int = 3) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def look(self) -> dict[str, Any]:
        sight = {"map": np.full((2, 2), self.t, np.uint8), "near": np.array([self.t % 3, self.t % 2])}
        return {"goal": np.int64(5 + self.t % 4), "sight": sight}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.t += 1
        self.length = 8 - self.length if self.t > self.length else self.length
        return self.look(), float(action[0] * 100 + action[1]), self.t == self.length, False, {}


class Slide(gymnasium.Env[Any, Any]):
    """Gives back the action it saw; never ends by itself."""

    observation_space: gymnasium.Space[Any] = spaces.Box(-9, 9, (2, 1), np.float32)
    action_space: gymnasium.Space[Any] = spaces.Box(
        np.array([[-1], [-2]], np.float32), np.array([[1], [2]], np.float32)
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros((2, 1), np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return action, 0.0, False, False, {}


class Crooked(Slide):
    """Its observations are not of its space's shape."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros((1, 1), np.float32), {}


class Talk(Slide):
    observation_space = spaces.Text(5)


class Write(Slide):
    action_space = spaces.Text(3)


class Desk(gymnasium.Env[Any, Any]):
    """A Dict action with a Tuple in it; it shows the action that it got, and which of its parts are allowed."""

    observation_space = spaces.Dict({"got": spaces.Box(-99, 99, (8,), np.float64), "allowed": spaces.MultiBinary(2)})
    action_space = spaces.Dict(
        {
            "keys": spaces.Tuple((spaces.Discrete(3, start=5), spaces.MultiBinary(2))),
            "move": spaces.Box(np.float32(-1), np.float32(2), (2, 1)),
            "dials": spaces.MultiDiscrete([4, 2], start=[10, 0]),
        }
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return {"got": np.zeros(8), "allowed": np.array([1, 0], np.int8)}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        parts = (*action["keys"], action["move"], action["dials"])
        got = np.concatenate([np.ravel(part).astype(np.float64) for part in parts])
        return {"got": np.append(got, 0.0), "allowed": np.array([0, 1], np.int8)}, 0.0, False, False, {}


def not_an_env() -> str:
    return "no environment"


def unbuildable(error: str = "", **_: Any) -> None:
    raise {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError, "RuntimeError": RuntimeError}[error](
        "no"
    )


def config(env_id: str, **kwargs: Any) -> EnvConfig:
    return EnvConfig(id=env_id, **kwargs)


def run(backend: Backend, actions: np.ndarray, seed: int = 3) -> dict[str, np.ndarray]:
    """One unroll of the backend under the given actions [T, B, ...]."""
    rollout = Rollout(backend.spec, PolicySpec(), len(actions), backend.num_envs)
    backend.reset(seed, rollout.observation_row())
    rollout.begin()
    for action in actions:
        rollout.advance(backend.step(rollout.act({"action": action}, 0), *rollout.targets()))
    backend.close()
    return rollout.finish()


def by_hand(env_id: str, seed: int, actions: list[Any]) -> list[tuple[Any, Any, float, bool, bool]]:
    """Steps a plain environment: (observation before, true observation after, reward, terminated, truncated)."""
    env = gymnasium.make(env_id)
    seen, _ = env.reset(seed=seed)
    steps = []
    for action in actions:
        after, reward, terminated, truncated, _ = env.step(action)
        steps.append((seen, after, float(reward), terminated, truncated))
        seen = env.reset()[0] if terminated or truncated else after
    env.close()
    return steps


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1"])
def test_a_loop_of_plain_environments_gives_what_each_gives_alone(env_id: str) -> None:
    backend = make_backend(config(env_id, vectorized=False), 3)
    space = gymnasium.spec(env_id).make().action_space
    space.seed(1)
    actions = np.array([[space.sample() for _ in range(3)] for _ in range(1000)])
    arrays = run(backend, actions)
    seeds = np.random.SeedSequence(3).generate_state(3) & 0x7FFFFFFF
    assert len(set(seeds.tolist())) == 3
    finals = dict(zip(arrays["final_index"].tolist(), arrays.get("final.obs", ()), strict=True))
    ended = 0
    for b in range(3):
        for t, (seen, after, reward, terminated, truncated) in enumerate(
            by_hand(env_id, int(seeds[b]), list(actions[:, b]))
        ):
            np.testing.assert_array_equal(arrays["observation.obs"][t, b], seen)
            assert arrays["reward"][t, b] == np.float32(reward)
            assert (arrays["terminated"][t, b], arrays["truncated"][t, b]) == (terminated, truncated)
            assert arrays["first"][t + 1, b] == (terminated or truncated)
            if terminated or truncated:
                ended += 1
                np.testing.assert_array_equal(finals[t * 3 + b], after)
            else:
                np.testing.assert_array_equal(arrays["observation.obs"][t + 1, b], after)
    assert ended == len(finals) == len(arrays["episode_returns"])
    assert ended >= 12
    assert arrays["valid"].all()


def test_a_time_limit_truncates_and_the_last_observation_is_kept() -> None:
    backend = gymnasium_backend.make_backend(config("Pendulum-v1", kwargs={"max_episode_steps": 4}), 2)
    arrays = run(backend, np.ones((9, 2, 1), np.float32))
    assert arrays["truncated"][:, 0].tolist() == [False, False, False, True] * 2 + [False]
    assert not arrays["terminated"].any()
    assert arrays["final_index"].tolist() == [6, 7, 14, 15]
    assert arrays["episode_lengths"].tolist() == [4, 4, 4, 4]


def test_no_limit_of_an_environment_with_a_vector_of_its_own_is_none() -> None:
    backend = gymnasium_backend.make_backend(config("CartPole-v1", kwargs={"max_episode_steps": -1}), 2)
    arrays = run(backend, np.tile(np.array([0, 1])[:, None], (4, 2)))
    assert not arrays["truncated"].any()


def test_dict_observations_are_flattened_and_categories_count_from_zero() -> None:
    backend = make_backend(config(f"{HERE}:Maze", kwargs={"length": 3}, frame_skip=2), 2)
    assert backend.spec.observations == (
        ArraySpec("goal", "<i8", ()),
        ArraySpec("sight/map", "|u1", (2, 2)),
        ArraySpec("sight/near", "<i8", (2,)),
    )
    assert backend.spec.action == ActionSpec("multi_discrete", "<i8", (2,), n=(3, 2))
    assert backend.spec.frame_skip == 2
    actions = np.array([[[0, 0], [2, 1]], [[1, 1], [0, 1]], [[2, 0], [1, 0]], [[2, 1], [0, 0]]])
    arrays = run(backend, actions)
    assert arrays["reward"].tolist() == [[1020, 1221], [1121, 1021], [1220, 1120], [1221, 1020]]
    assert arrays["observation.goal"].tolist() == [[0, 0], [1, 1], [2, 2], [0, 0], [1, 1]]
    assert arrays["observation.sight/map"][2].tolist() == [[[2, 2], [2, 2]]] * 2
    assert arrays["observation.sight/near"][1].tolist() == [[1, 1], [1, 1]]
    assert arrays["final_index"].tolist() == [4, 5]
    assert arrays["final.goal"].tolist() == [3, 3]
    assert arrays["final.sight/near"].tolist() == [[0, 1], [0, 1]]
    assert arrays["terminated"][2].tolist() == [True, True]


def test_two_entries_of_one_name_are_refused() -> None:
    box = spaces.Box(0, 1, (1,))
    space = spaces.Dict({"a": spaces.Dict({"b": box}), "a/b": box})
    with pytest.raises(ConfigError, match=r"env.id='Maze': two entries of the observation space are called 'a/b'"):
        observation_leaves("Maze", space)


def test_keys_that_are_no_text_name_entries_and_numbers_become_little_endian() -> None:
    leaves = observation_leaves("Maze", spaces.Dict({1: spaces.Box(0, 1, (1,), np.dtype(">f4"))}))
    assert [leaf.spec for leaf in leaves] == [ArraySpec("1", "<f4", (1,))]
    assert leaves[0].read({1: 7}) == 7


def test_box_actions_are_clipped_for_the_environment_and_kept_as_chosen() -> None:
    backend = make_backend(config(f"{HERE}:Slide"), 1)
    assert backend.spec.action == ActionSpec("box", "<f4", (2, 1), low=(-1.0, -2.0), high=(1.0, 2.0))
    actions = np.array([[[[5], [-5]]], [[[0.5], [1.5]]]], np.float32)
    arrays = run(backend, actions)
    assert arrays["observation.obs"][1:].tolist() == [[[[1], [-2]]], [[[0.5], [1.5]]]]
    assert arrays["action"].tolist() == actions.tolist()


def test_vector_cartpole_reports_the_rewards_between_firsts_as_returns() -> None:
    backend = gymnasium_backend.make_backend(config("CartPole-v1"), 16)
    assert isinstance(backend, VectorBackend)
    arrays = run(backend, np.random.default_rng(0).integers(0, 2, (2000, 16)))
    returns = []
    for b in range(16):
        starts = np.flatnonzero(arrays["first"][:, b])
        for start, end in pairwise(starts):
            assert arrays["valid"][start:end, b].tolist() == [True] * (end - start - 1) + [False]
            assert arrays["terminated"][start:end, b].tolist() == [False] * (end - start - 2) + [True, False]
            returns.append(float(arrays["reward"][start:end, b].sum()))
            # A cart that falls has left its bounds: the row after the last step is the true last observation.
            cart, _, pole, _ = np.abs(arrays["observation.obs"][end - 1, b])
            assert cart > 2.4 or pole > 0.2094
            assert np.abs(arrays["observation.obs"][end, b]).max() <= 0.05
    complete = arrays["episode_returns"].tolist()
    assert len(returns) > 1000
    assert 0 <= len(complete) - len(returns) <= 16
    assert sum(returns) <= sum(complete) <= arrays["valid"].sum()
    assert complete == arrays["episode_lengths"].tolist()


def test_vector_cartpole_is_truncated_after_500_steps() -> None:
    backend = gymnasium_backend.make_backend(config("CartPole-v1"), 1)
    rollout = Rollout(backend.spec, PolicySpec(), 502, 1)
    backend.reset(1, rollout.observation_row())
    rollout.begin()
    while not rollout.complete:
        # A linear controller that holds the pole up.
        lean = float(rollout.request()["observation.obs"][0] @ np.array([0.1, 0.5, 5.0, 1.0]))
        rollout.advance(backend.step(rollout.act({"action": np.array([int(lean > 0)])}, 0), *rollout.targets()))
    arrays = rollout.finish()
    assert np.flatnonzero(arrays["truncated"]).tolist() == [499]
    assert not arrays["terminated"].any()
    assert np.flatnonzero(~arrays["valid"]).tolist() == [500]
    assert np.flatnonzero(arrays["first"]).tolist() == [0, 501]
    assert (arrays["episode_returns"].tolist(), arrays["episode_lengths"].tolist()) == ([500.0], [500])
    assert rollout.steps == 501


DIALS = ActionSpec("multi_discrete", "<i8", (2,), n=(4, 2))
KEYS = (ActionSpec("discrete", "<i8", (), n=(3,)), ActionSpec("multi_binary", "<i8", (2,), n=(2, 2)))
MOVE = ActionSpec("box", "<f4", (2, 1), low=(-1.0, -1.0), high=(2.0, 2.0))


@pytest.mark.parametrize("vector", [False, True])
def test_actions_of_several_spaces_are_one_vector_that_is_taken_apart(vector: bool) -> None:
    venv = SyncVectorEnv([Desk] * 2, autoreset_mode=AutoresetMode.SAME_STEP) if vector else None
    found = config(f"{HERE}:Desk")
    backend = VectorBackend(found, venv) if venv is not None else make_backend(found, 2)
    # In the order of the keys' names, as Gymnasium sorts them.
    assert backend.spec.action == ActionSpec("tuple", "<f8", (7,), parts=(DIALS, *KEYS, MOVE))
    assert backend.spec.observations[0] == ArraySpec("allowed", "|i1", (2,))
    actions = np.array([[[3, 1, 2, 1, 0, 0.5, 9.0], [0, 0, 0, 0, 1, -7.0, 1.5]]])
    arrays = run(backend, actions)
    shown = [[7, 1, 0, 0.5, 2.0, 13, 1, 0], [5, 0, 1, -1.0, 1.5, 10, 0, 0]]
    assert arrays["observation.got"][1].tolist() == shown
    assert arrays["observation.allowed"][:, 0].tolist() == [[1, 0], [0, 1]]
    assert arrays["action"].tolist() == actions.tolist()


def test_actions_without_a_box_are_whole_numbers() -> None:
    space = spaces.Tuple((spaces.Discrete(3), spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2)))))
    spec = action_spec("x", space)
    assert (spec.dtype, spec.shape, [part.kind for part in spec.parts]) == (
        "<i8",
        (4,),
        ["discrete", "discrete", "multi_binary"],
    )
    each = list(action_rows(space, action_putter(space)(np.array([[2, 1, 0, 1], [0, 0, 1, 1]]))))
    assert [space.contains(action) for action in each] == [True, True]
    assert type(each[0][1][0]) is int
    assert each[0][1][1].tolist() == [0, 1]


@pytest.mark.parametrize("name", ["Maze", "Pendulum"])
def test_a_vector_environment_with_same_step_resets_equals_the_loop(name: str) -> None:
    make = Maze if name == "Maze" else lambda: gymnasium.make("Pendulum-v1", max_episode_steps=4)
    loop = make_backend(config(f"{HERE}:Maze"), 3) if name == "Maze" else None
    venv = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = np.zeros((20, 3, 2), np.int64) if loop else np.ones((20, 3, 1), np.float32)
    arrays = run(VectorBackend(config(name), venv), actions)
    if loop:
        expected = run(loop, actions)
        assert expected.keys() == arrays.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(arrays[key], value, err_msg=key)
    else:
        assert arrays["final_index"].tolist() == [9, 10, 11, 21, 22, 23, 33, 34, 35, 45, 46, 47, 57, 58, 59]
        assert arrays["final.obs"].shape == (15, 3)
        assert (np.abs(arrays["final.obs"] - arrays["observation.obs"][4::4].reshape(15, 3)).max(axis=1) > 0).all()


def test_the_same_seed_gives_the_same_experience_and_another_seed_does_not() -> None:
    actions = np.zeros((30, 2), np.int64)
    make = gymnasium_backend.make_backend
    first, again, other = (run(make(config("CartPole-v1"), 2), actions, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first["observation.obs"], again["observation.obs"])
    assert (first["observation.obs"][0] != other["observation.obs"][0]).all()


def test_an_environment_is_drawn_when_asked_to() -> None:
    backend = make_backend(config("CartPole-v1"), 1, render_mode="rgb_array")
    backend.reset(1, {"obs": np.empty((1, 4), np.float32)})
    picture = backend.render()
    backend.close()
    assert picture is not None
    assert (picture.shape, picture.dtype.str) == ((400, 600, 3), "|u1")


def test_minatar_ids_are_registered_on_demand() -> None:
    backend = make_backend(config("MinAtar/Breakout-v1"), 1)
    assert backend.spec.observations == (ArraySpec("obs", "|b1", (10, 10, 4)),)
    assert backend.spec.action.n == (3,)


def test_a_registered_id_may_name_the_module_that_registers_it() -> None:
    backend = make_backend(config("gymnasium.envs.classic_control:Acrobot-v1"), 1)
    assert backend.spec.id == "gymnasium.envs.classic_control:Acrobot-v1"
    assert backend.spec.action.n == (3,)


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("CartPol-v1", r"env.id='CartPol-v1' is not registered \(did you mean CartPole-v1\?\)"),
        ("corridor.envs", r"'corridor.envs' is not registered \(give a Gymnasium id, .*package.module:factory\)"),
        (f"{HERE}:Maz", r"'Maz' is neither a registered id nor a callable of .* \(did you mean Maze\?\)"),
        ("no_such_module:Maze", r"env.id='no_such_module:Maze' cannot be imported: No module named 'no_such_module'"),
        (f"{HERE}:not_an_env", r"made str, not a gymnasium.Env \(return one from the factory\)"),
        (f"{HERE}:Talk", r"observation 'obs' space Text.* is not supported \(supported are Box, .*Dict"),
        (
            f"{HERE}:Write",
            r"action space Text.* is not supported \(supported are Box, Discrete.*Dict and Tuple of those",
        ),
    ],
)
def test_an_environment_that_cannot_be_used_is_named(env_id: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_backend(config(env_id), 1)


NONE = spaces.Box(-1, 1, (0,), np.float32)
LONG = spaces.Box(-1, 1, (2,), np.longdouble)


@pytest.mark.parametrize("space", [NONE, LONG, spaces.Dict(), spaces.Dict({"far": LONG})])
def test_an_observation_that_is_empty_or_of_numbers_that_no_message_carries_is_refused(space: Any) -> None:
    with pytest.raises(ConfigError, match=r"observation .* is not supported .* at most 64 bits .* not empty; wrap"):
        observation_leaves("Odd-v0", space)


@pytest.mark.parametrize("space", [NONE, LONG, spaces.Tuple(()), spaces.Dict(), spaces.Dict({"a": NONE})])
def test_an_action_that_is_empty_or_of_numbers_that_no_message_carries_is_refused(space: Any) -> None:
    with pytest.raises(ConfigError, match=r"action space .* is not supported .* at most 64 bits .* not empty; a Box"):
        action_spec("Odd-v0", space)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_arguments_that_the_environment_does_not_take_are_named(env_id: str) -> None:
    with pytest.raises(ConfigError, match=r"env.kwargs=\{'wind': 3\}: .*unexpected keyword argument 'wind'"):
        make_backend(config(env_id, kwargs={"wind": 3}), 1)


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("ALE/Pong-v5", "ale_py", "atari"), ("MinAtar/Breakout-v1", "minatar.gym", "minatar")],
)
def test_a_missing_simulator_is_answered_with_its_pip_line(
    env_id: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its parts too, which an earlier test may have loaded.
    for name in [module, *(loaded for loaded in sys.modules if loaded.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"env.id=.* \(in the clone: pip install -e '\.\[{extra}\]'\)"):
        make_backend(config(env_id), 1)


def test_an_observation_of_another_shape_than_its_space_is_refused() -> None:
    backend = make_backend(config(f"{HERE}:Crooked"), 1)
    with pytest.raises(ConfigError, match=r"gave observation 'obs' of shape \(1, 1\), its space says \(2, 1\)"):
        backend.reset(1, {"obs": np.empty((1, 2, 1), np.float32)})


class Choosy(gymnasium.Env[np.ndarray, int]):
    """Notes what its action space says of what it is given, and of what it never is."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.action_space = spaces.Discrete(3, start=5)
        self.said: list[bool] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        asked = (action, 4, 8, np.int64(7), np.int64(8), 6.0, "6", np.array([6]))
        self.said = [self.action_space.contains(x) for x in asked]
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_a_discrete_space_says_of_an_action_what_gymnasium_says() -> None:
    env = Choosy()
    backend = gymnasium_backend.LoopBackend(EnvConfig(), [env])
    rows = step_rows(backend.spec, 1)
    backend.reset(1, rows.observation)
    backend.step(np.array([0]), *rows)
    assert env.said == [True, False, False, True, False, False, False, False]


@pytest.mark.parametrize("error", ["ValueError", "KeyError"])
def test_what_a_constructor_would_raise_again_is_a_wrong_setting(error: str) -> None:
    env_id = f"{__name__}:unbuildable"
    said = rf"env\.id='{env_id}': its constructor raises {error}: .*\(test_gymnasium_backend\.py:\d+\)"
    with pytest.raises(ConfigError, match=said) as caught:
        make_backend(config(env_id, kwargs={"error": error}), 1)
    assert caught.value.remedy == "mend the environment, or env.kwargs"


@pytest.mark.parametrize("error", ["OSError", "RuntimeError"])
def test_what_may_pass_in_a_constructor_is_left_to_a_restart(error: str) -> None:
    with pytest.raises((OSError, RuntimeError), match="no"):
        make_backend(config(f"{__name__}:unbuildable", kwargs={"error": error}), 1)
