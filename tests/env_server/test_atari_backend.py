"""The Atari backend gives what Gymnasium's plain environment gives under its own preprocessing, pixel for pixel."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, NamedTuple

import ale_py
import cv2
import gymnasium
import numpy as np
import psutil
import pytest
from ale_py import ALEInterface, roms
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from jobs import until

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import ActionSpec, ArraySpec
from services.env_server.backends import Backend, make_backend
from services.env_server.backends.atari import AtariBackend

PLAIN = {"noop_max": 0, "use_fire_reset": False, "repeat_action_probability": 0.0}


class Step(NamedTuple):
    """One step by hand: the stack before and after it, what it gave, and the lives left."""

    seen: np.ndarray
    after: np.ndarray
    reward: float
    terminated: bool
    lives: int


class Life(NamedTuple):
    """What a group of B lived through in T steps, as an unroll has it, but with whole stacks."""

    stacks: np.ndarray
    first: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    finals: dict[int, np.ndarray]


def atari(game: str, num_envs: int, render_mode: str | None = None, **kwargs: Any) -> Backend:
    return make_backend(EnvConfig(id=f"ALE/{game}-v5", kwargs=kwargs), num_envs, render_mode)


def live(backend: Backend, actions: np.ndarray, seed: int = 3) -> Life:
    """Steps the backend under the given actions [T, B]."""
    steps, n = actions.shape
    life = Life(
        np.zeros((steps + 1, n, *backend.spec.observations[0].shape), np.uint8),
        np.zeros((steps + 1, n), np.bool_),
        np.zeros((steps, n), np.float32),
        *(np.ones((steps, n), np.bool_) for _ in range(2)),
        {},
    )
    life.first[0] = True
    backend.reset(seed, {"obs": life.stacks[0]})
    valid = np.zeros(n, np.bool_)
    for t, action in enumerate(actions):
        row = (life.reward[t], life.terminated[t], life.truncated[t], valid)
        finals = backend.step(action, {"obs": life.stacks[t + 1]}, *row)
        assert valid.all()
        life.first[t + 1, finals.indices] = True
        for k, b in enumerate(finals.indices.tolist()):
            life.finals[t * n + b] = finals.observation["obs"][k]
    return life


def random_and_scripted(choices: int, steps: int) -> np.ndarray:
    """[T, 2]: uniform actions, and each action held for a while."""
    drawn = np.random.default_rng(7).integers(0, choices, steps)
    return np.stack([drawn, np.arange(steps) // 6 % choices], axis=1)


def by_hand(game: str, actions: np.ndarray, stack: int = 4) -> Iterator[Step]:
    plain = gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0)
    env = FrameStackObservation(AtariPreprocessing(plain, noop_max=0), stack, padding_type="zero")
    seen, _ = env.reset(seed=1)
    for action in actions:
        after, reward, terminated, _, info = env.step(action)
        yield Step(seen, after, float(reward), bool(terminated), info["lives"])
        seen = env.reset()[0] if terminated else after
    env.close()


@pytest.mark.parametrize(("game", "choices", "steps", "games"), [("Pong", 6, 1300, 2), ("Breakout", 4, 800, 3)])
def test_games_equal_the_plain_environment_pixel_for_pixel(game: str, choices: int, steps: int, games: int) -> None:
    backend = atari(game, 2, **PLAIN)
    assert isinstance(backend, AtariBackend)
    actions = random_and_scripted(choices, steps)
    life = live(backend, actions)
    scores, ended = 0.0, []
    for b in range(2):
        score = 0.0
        for t, step in enumerate(by_hand(game, actions[:, b])):
            assert np.array_equal(life.stacks[t, b], step.seen), (t, b)
            assert life.reward[t, b] == step.reward
            assert life.terminated[t, b] == life.first[t + 1, b] == step.terminated
            score += step.reward
            if step.terminated:
                assert np.array_equal(life.finals[t * 2 + b], step.after)
                ended.append(t * 2 + b)
                scores, score = scores + score, 0.0
    assert sorted(ended) == list(life.finals)
    assert len(ended) >= games
    assert not life.truncated.any()
    assert backend.tallies == {"games": len(ended), "score": int(scores)}


def test_a_lost_life_ends_the_episode_and_the_game_goes_on() -> None:
    backend = atari("Breakout", 2, **PLAIN, episodic_life=True)
    actions = random_and_scripted(4, 600)
    life = live(backend, actions)
    lost = games = 0
    for b in range(2):
        lives, began = 5, 0
        for t, step in enumerate(by_hand("Breakout", actions[:, b])):
            strange = max(0, 3 - (t + 1 - began))
            own = step.after.copy()
            own[:strange] = 0
            ends = step.lives < lives
            assert life.terminated[t, b] == life.first[t + 1, b] == ends
            assert life.reward[t, b] == step.reward
            assert np.array_equal(life.finals[t * 2 + b] if ends else life.stacks[t + 1, b], own), (t, b)
            if ends and not step.terminated:
                lost += 1
                assert np.array_equal(life.stacks[t + 1, b, 3], step.after[3])
                assert not life.stacks[t + 1, b, :3].any()
            games += step.terminated
            lives, began = (5 if step.terminated else step.lives), (t + 1 if ends else began)
    assert (lost, games) == (len(life.finals) - games, backend.tallies["games"])
    assert lost >= 12
    assert games >= 2


@pytest.mark.parametrize(("stack", "episodic_life"), [(4, False), (4, True), (2, True), (1, True)])
def test_a_stack_is_its_episodes_newest_frames_after_zeros(stack: int, episodic_life: bool) -> None:
    actions = np.random.default_rng(1).integers(0, 4, (140, 4))
    life = live(atari("Breakout", 4, stack_num=stack, episodic_life=episodic_life), actions)
    frames = life.stacks[:, :, -1]
    assert life.first[1:].sum() >= (8 if episodic_life else 1)
    age = np.zeros(4, np.int64)
    for t in range(141):
        age = np.where(life.first[t], 0, age + 1)
        for back in range(stack):
            shown = np.where(age >= back, 1, 0).astype(np.uint8)[:, None, None]
            assert np.array_equal(life.stacks[t, :, stack - 1 - back], frames[t - back] * shown), (t, back)
    # What ended an episode is its stack before the step and one frame more.
    for index, last in life.finals.items():
        assert np.array_equal(last[:-1], life.stacks[index // 4, index % 4, 1:])


def emulated(game: str, seed: int, noops: int, actions: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """Frames and rewards of one game by ALE's bare interface: FIRE and no-ops first, and sticky actions throughout."""
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.25)
    ale.setInt("random_seed", seed)
    ale.loadROM(roms.get_rom_path(game))
    ale.reset_game()
    for action in (ale_py.Action.FIRE, *(ale_py.Action.NOOP for _ in range(noops))):
        ale.act(action)
    choices = ale.getMinimalActionSet()

    def shrunk(screen: np.ndarray) -> np.ndarray:
        return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)

    frames, rewards = [shrunk(ale.getScreenGrayscale())], []
    for action in actions:
        reward, screens = 0, []
        for _ in range(4):
            reward += ale.act(choices[action])
            screens.append(ale.getScreenGrayscale())
        rewards.append(reward)
        frames.append(shrunk(np.maximum(*screens[2:])))
    return frames, rewards


def test_fire_no_ops_and_sticky_actions_are_ale_s_own() -> None:
    n, steps = 3, 60
    actions = np.random.default_rng(5).integers(0, 6, (steps, n))
    life = live(atari("SpaceInvaders", n, noop_max=5), actions)
    seeds = np.random.SeedSequence(3).generate_state(n) & 0x7FFFFFFF
    counts = []
    for b in range(n):
        for noops in range(5):
            frames, rewards = emulated("space_invaders", int(seeds[b]), noops, actions[:, b])
            if np.array_equal(frames, life.stacks[:, b, -1]):
                assert rewards == life.reward[:, b].tolist()
                counts.append(noops)
                break
    assert len(counts) == n
    assert len(set(counts)) >= 2
    assert max(counts) <= 3
    # Not clipped: what an invader is worth.
    assert life.reward.max() == 5


def test_a_game_is_truncated_after_its_frames() -> None:
    life = live(atari("Pong", 2, max_num_frames_per_episode=40, noop_max=0), np.zeros((25, 2), np.int64))
    assert np.flatnonzero(life.truncated[:, 0]).tolist() == [9, 19]
    assert not life.terminated.any()
    assert list(life.finals) == [18, 19, 38, 39]
    assert np.flatnonzero(life.first[:, 1]).tolist() == [0, 10, 20]
    assert not life.stacks[10, :, :3].any()
    assert np.array_equal(life.finals[18][:3], life.stacks[9, 0, 1:])
    assert not np.array_equal(life.finals[18][3], life.stacks[10, 0, 3])


def test_a_game_cut_soon_after_a_lost_life_ends_with_that_lifes_frames_alone() -> None:
    actions = np.full((60, 1), 1)
    lost = int(np.flatnonzero(live(atari("Breakout", 1, **PLAIN, episodic_life=True), actions).terminated)[0])
    cut = atari("Breakout", 1, **PLAIN, episodic_life=True, max_num_frames_per_episode=4 * (lost + 3))
    last = live(cut, actions).finals[lost + 2]
    assert last.any(axis=(1, 2)).tolist() == [False, True, True, True]
    assert cut.tallies["games"] == 60 // (lost + 3)


def test_specs_say_the_stack_and_the_frames_of_a_step() -> None:
    spec = atari("Pong", 1).spec
    assert spec.observations == (ArraySpec("obs", "|u1", (4, 84, 84), stack=4),)
    assert spec.action == ActionSpec("discrete", "<i8", (), n=(6,))
    assert spec.frame_skip == 4
    other = atari("Pong", 1, full_action_space=True, stack_num=1, frame_skip=5).spec
    assert other.observations == (ArraySpec("obs", "|u1", (1, 84, 84)),)
    assert (other.action.n, other.frame_skip) == ((18,), 5)


def test_the_same_seed_gives_the_same_games_whatever_the_threads() -> None:
    actions = np.random.default_rng(2).integers(0, 6, (40, 3))
    one, two, other = (live(atari("Pong", 3, num_threads=k), actions, s) for k, s in ((1, 3), (2, 3), (1, 4)))
    assert np.array_equal(one.stacks, two.stacks)
    assert not np.array_equal(one.stacks, other.stacks)
    assert not np.array_equal(one.stacks[:, 0], one.stacks[:, 1])


def test_the_newest_frame_is_drawn_when_asked_to() -> None:
    backend = atari("Pong", 2, render_mode="rgb_array")
    life = live(backend, np.full((3, 2), 2))
    picture = backend.render()
    assert picture is not None
    assert (picture.shape, picture.dtype.str) == ((84, 84, 3), "|u1")
    for channel in range(3):
        assert np.array_equal(picture[:, :, channel], life.stacks[3, 0, 3])
    assert atari("Pong", 1).render() is None


async def test_closing_stops_the_emulators_threads() -> None:
    gc.collect()

    def threads() -> set[int]:
        return {thread.id for thread in psutil.Process().threads()}

    before = threads()
    backend = atari("Pong", 4)
    (emulator,) = threads() - before
    backend.close()
    # The kernel lists a thread a moment longer than joining it takes.
    await until(lambda: emulator not in threads(), "the emulator's thread is gone")


def test_the_plain_environment_is_still_there() -> None:
    backend = make_backend(EnvConfig(id="ALE/Pong-v5", vectorized=False, kwargs={"obs_type": "ram"}), 1)
    assert backend.spec.observations == (ArraySpec("obs", "|u1", (128,)),)
    assert make_backend(EnvConfig(id="ale_py:ALE/Pong-v5"), 1).spec.observations[0].shape == (4, 84, 84)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"noop_max": -1}, r"env.kwargs.noop_max=-1: .*greater than or equal to 0"),
        ({"frameskip": 2}, r"takes no env.kwargs.frameskip=2 \(did you mean frame_skip\?; or env.vectorized=false"),
        ({"reward_clipping": True}, r"takes no env.kwargs.reward_clipping=True \(known: frame_skip, .*\)"),
        ({"repeat_action_probability": 1}, r"env.kwargs.repeat_action_probability=1: .*less than 1"),
    ],
)
def test_options_that_make_no_sense_are_named(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        atari("Pong", 1, **kwargs)


def test_a_frame_skip_that_disagrees_is_refused() -> None:
    said = r"env.frame_skip=2 disagrees with env.kwargs.frame_skip=4 .* \(leave env.frame_skip out"
    with pytest.raises(ConfigError, match=said):
        make_backend(EnvConfig(id="ALE/Pong-v5", frame_skip=2), 1)
    assert make_backend(EnvConfig(id="ALE/Pong-v5", frame_skip=4), 1).spec.frame_skip == 4


def test_a_game_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'ALE/Pongo-v5' is not registered \(did you mean ALE/Pong-v5\?\)"):
        atari("Pongo", 1)
