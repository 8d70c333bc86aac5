"""The MuJoCo backend gives what Gymnasium's own environments give from the same state under the same actions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from common.config import EnvConfig
from common.errors import ConfigError
from services.env_server.backends import Finals, make_backend, native_warnings
from services.env_server.backends import gymnasium as plain
from services.env_server.backends.mujoco import MujocoBackend

IDS = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
    "Swimmer-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Pusher-v5",
)
FALLS = {
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
}
WHOLE = {"exclude_current_positions_from_observation": False}
UNENDING = {"terminate_when_unhealthy": False, "healthy_reward": 2}
OTHER_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("HalfCheetah-v5", {**WHOLE, "forward_reward_weight": 2, "ctrl_cost_weight": 0.3, "frame_skip": 3}),
    ("Hopper-v5", {**WHOLE, **UNENDING, "healthy_state_range": [-2.0, 2.0], "healthy_angle_range": [-0.1, 0.3]}),
    ("Walker2d-v5", {**WHOLE, **UNENDING, "healthy_z_range": [1.0, 1.5], "forward_reward_weight": 0.5}),
    (
        "Ant-v5",
        {**WHOLE, **UNENDING, "contact_force_range": [-0.5, 2.0], "contact_cost_weight": 0.1, "main_body": "aux_1"},
    ),
    ("Ant-v5", {"include_cfrc_ext_in_observation": False, "healthy_z_range": [0.3, 0.9], "max_episode_steps": 20}),
    (
        "Humanoid-v5",
        {**WHOLE, "include_cvel_in_observation": False, "contact_cost_range": [0.1, 5], "healthy_reward": 1},
    ),
    (
        "Humanoid-v5",
        {"include_cinert_in_observation": False, "include_cfrc_ext_in_observation": False, "frame_skip": 2},
    ),
    ("Swimmer-v5", {**WHOLE, "reset_noise_scale": 0.5, "ctrl_cost_weight": 0.01}),
    ("InvertedPendulum-v5", {"reset_noise_scale": 0.1, "max_episode_steps": 9}),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 3.5, "reset_noise_scale": 0.2}),
    ("Reacher-v5", {"reward_dist_weight": 3, "reward_control_weight": 0.2, "max_episode_steps": -1}),
    ("Pusher-v5", {"reward_near_weight": 2, "reward_dist_weight": 0.3, "reward_control_weight": 1}),
]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo leaves its log in the working directory when Gymnasium alone drives it."""
    monkeypatch.chdir(tmp_path)


def native(env_id: str, num_envs: int, **kwargs: Any) -> MujocoBackend:
    backend = make_backend(EnvConfig(id=env_id, kwargs=kwargs), num_envs)
    assert isinstance(backend, MujocoBackend)
    return backend


class Driven:
    """A backend and the arrays that it writes, in the precision of the simulator."""

    def __init__(self, backend: MujocoBackend, seed: int = 5) -> None:
        n = backend.num_envs
        self.backend = backend
        self.seen = np.zeros((n, *backend.spec.observations[0].shape))
        self.reward = np.zeros(n)
        self.terminated, self.truncated, self.valid = (np.zeros(n, np.bool_) for _ in range(3))
        backend.reset(seed, {"obs": self.seen})

    def step(self, action: np.ndarray) -> Finals:
        return self.backend.step(action, {"obs": self.seen}, self.reward, self.terminated, self.truncated, self.valid)

    def state(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        bind = self.backend.simulations.bind
        return bind("qpos")[b].copy(), bind("qvel")[b].copy()


class Alone:
    """Gymnasium's plain environment, whose episodes start at states that it is told."""

    def __init__(self, env_id: str, **kwargs: Any) -> None:
        self.env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        self.simulator: Any = self.env.unwrapped

    def start(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        self.env.reset()
        # A second state after a reset would begin with the first one's accelerations as its solver's guess.
        mujoco.mj_resetData(self.simulator.model, self.simulator.data)
        self.simulator.set_state(qpos, qvel)
        first: np.ndarray = self.simulator._get_obs()
        return first


def actions(backend: MujocoBackend, steps: int) -> Iterable[np.ndarray]:
    """Row 0: random and at times out of bounds; row 1: waves of growing strength; row 2: saturated, then still."""
    spec = backend.spec.action
    high = np.array(spec.high)
    phase = np.arange(len(high))
    random = np.random.default_rng(11)
    for t in range(steps):
        wave = np.sin(0.15 * t + phase) * min(1.0, t / 500)
        saturated = np.sign(np.sin(0.4 * (t // 10) + 2 * phase)) * (t % 200 < 150)
        yield np.stack([random.uniform(-1.2, 1.2, len(high)), wave, saturated] * high).astype(np.float32)


def hold_against_gymnasium(env_id: str, steps: int, **kwargs: Any) -> tuple[int, int]:
    """Steps both from the same states, gives how many episodes terminated and how many were cut."""
    ours = Driven(native(env_id, 3, **kwargs))
    theirs = [Alone(env_id, **kwargs) for _ in range(3)]
    ends = np.zeros(2, np.int64)

    def begin(rows: Iterable[int]) -> None:
        for b in rows:
            np.testing.assert_allclose(ours.seen[b], theirs[b].start(*ours.state(b)), rtol=0, atol=1e-9)

    begin(range(3))
    for action in actions(ours.backend, steps):
        finals = ours.step(action)
        last = ours.seen.copy()
        last[finals.indices] = finals.observation.get("obs", last[:0])
        clipped = np.clip(action, ours.backend.spec.action.low, ours.backend.spec.action.high).astype(np.float32)
        for b, alone in enumerate(theirs):
            after, reward, terminated, truncated, _ = alone.env.step(clipped[b])
            np.testing.assert_allclose(last[b], after, rtol=0, atol=1e-9)
            np.testing.assert_allclose(ours.reward[b], float(reward), rtol=0, atol=1e-9)
            assert (ours.terminated[b], ours.truncated[b]) == (terminated, truncated)
        assert ours.valid.all()
        assert finals.indices.tolist() == np.flatnonzero(ours.terminated | ours.truncated).tolist()
        ends += ours.terminated.sum(), ours.truncated.sum()
        begin(finals.indices)
    return int(ends[0]), int(ends[1])


@pytest.mark.parametrize("env_id", IDS)
def test_trajectories_equal_gymnasiums_across_resets(env_id: str) -> None:
    terminated, truncated = hold_against_gymnasium(env_id, 400 if env_id == "Humanoid-v5" else 1100)
    assert (terminated > 2) == (env_id in FALLS)
    if env_id not in FALLS:
        assert truncated >= 3


@pytest.mark.parametrize(("env_id", "kwargs"), OTHER_ARGUMENTS)
def test_numeric_arguments_change_what_they_change_in_gymnasium(env_id: str, kwargs: dict[str, Any]) -> None:
    _, truncated = hold_against_gymnasium(env_id, 60, **kwargs)
    assert (truncated > 0) == (kwargs.get("max_episode_steps", 0) > 0)


@pytest.mark.parametrize("env_id", IDS)
def test_specs_equal_those_of_gymnasiums_backend(env_id: str) -> None:
    config = EnvConfig(id=env_id)
    ours = make_backend(config, 1)
    assert isinstance(ours, MujocoBackend)
    assert ours.spec == plain.make_backend(config, 1).spec
    assert ours.spec.frame_skip == gymnasium.make(env_id).unwrapped.frame_skip  # type: ignore[attr-defined]


def test_frames_are_the_simulators_ticks_and_another_number_of_them_is_refused() -> None:
    assert make_backend(EnvConfig(id="HalfCheetah-v5", kwargs={"frame_skip": 3}), 1).spec.frame_skip == 3
    assert make_backend(EnvConfig(id="HalfCheetah-v5", frame_skip=5), 1).spec.frame_skip == 5
    with pytest.raises(
        ConfigError, match=r"env\.frame_skip=4 disagrees with env\.id='HalfCheetah-v5', whose step is 5"
    ):
        make_backend(EnvConfig(id="HalfCheetah-v5", frame_skip=4), 1)


@pytest.mark.parametrize("env_id", IDS)
def test_episodes_start_where_gymnasiums_do(env_id: str) -> None:
    count = 1500
    ours = Driven(native(env_id, count))
    alone = Alone(env_id)
    drawn = np.array([np.concatenate(ours.state(b)) for b in range(count)])
    expected = np.empty_like(drawn)
    for b in range(count):
        alone.env.reset(seed=b)
        expected[b] = alone.simulator.state_vector()
    # Five standard errors of the difference of two means, and of two standard deviations if they are a normal's.
    spread = expected.std(axis=0)
    error = 5 * spread * np.sqrt(2 / count) + 1e-12
    assert (np.abs(drawn.mean(axis=0) - expected.mean(axis=0)) < error).all()
    assert (np.abs(drawn.std(axis=0) - spread) < error / np.sqrt(2)).all()


def test_an_unstable_simulation_starts_over_as_mujoco_has_it_and_says_so_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(native_warnings, "_said", set())
    driven = Driven(native("HalfCheetah-v5", 2))
    driven.backend.simulations.bind("qvel")[1] = 1e12
    with caplog.at_level(logging.INFO, "headrace.env"):
        driven.step(np.zeros((2, 6), np.float32))
    assert any("unstable" in message for message in caplog.messages)
    assert np.abs(driven.seen[1]).max() < 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5"])
def test_a_seed_gives_the_same_trajectories(env_id: str) -> None:
    def run(backend: MujocoBackend, seed: int) -> np.ndarray:
        driven = Driven(backend, seed)
        trace = [driven.seen.copy()]
        for action in actions(backend, 80):
            driven.step(action)
            trace.append(driven.seen.copy())
        return np.array(trace)

    used = native(env_id, 3)
    first = run(used, 7)
    np.testing.assert_array_equal(first, run(used, 7))
    np.testing.assert_array_equal(first, run(native(env_id, 3), 7))
    assert not np.array_equal(first, run(used, 8))


def test_what_is_handed_over_as_final_is_never_written_again() -> None:
    driven = Driven(native("InvertedPendulum-v5", 3))
    push = np.full((3, 1), 3, np.float32)
    while not len((finals := driven.step(push)).indices):
        pass
    kept = finals.observation["obs"].copy()
    for _ in range(30):
        driven.step(push)
    np.testing.assert_array_equal(finals.observation["obs"], kept)


@pytest.mark.parametrize("kwargs", [{"xml_file": "half_cheetah.xml"}, {"width": 64}])
def test_arguments_that_are_not_numbers_leave_the_id_to_gymnasium_and_say_so(
    kwargs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "headrace.env"):
        backend = make_backend(EnvConfig(id="HalfCheetah-v5", kwargs=kwargs), 1)
    assert isinstance(backend, plain.LoopBackend)
    (line,) = (message for message in caplog.messages if "slower" in message)
    assert next(iter(kwargs)) in line


def test_drawing_is_left_to_gymnasium() -> None:
    assert isinstance(make_backend(EnvConfig(id="HalfCheetah-v5"), 1, "rgb_array"), plain.LoopBackend)


@pytest.mark.parametrize("kwargs", [{"no_such_weight": 1.0}, {"healthy_z_range": 3}])
def test_arguments_that_make_nothing_are_refused_by_name(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"env\.kwargs"):
        make_backend(EnvConfig(id="Hopper-v5", kwargs=kwargs), 1)
