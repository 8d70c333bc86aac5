"""The Crafter backend plays the package's game bit for bit, group by group, and says what it cannot do."""

from __future__ import annotations

import collections
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import opensimplex
import pytest
from crafter import Env, constants, engine, objects

from common.config import EnvConfig
from common.errors import ConfigError
from common.types import ActionSpec, ArraySpec
from services.env_server.backends import make_backend
from services.env_server.backends.crafter import CrafterBackend, crafter_score, rules
from services.env_server.backends.crafter.noise import Fields
from services.env_server.backends.crafter.rules import ACHIEVEMENTS, ACTIONS, ITEMS, MATERIALS

NOOP, DO, SLEEP, PLACE_PLANT = (ACTIONS.index(name) for name in ("noop", "do", "sleep", "place_plant"))
MOVES = {(-1, 0): 1, (1, 0): 2, (0, -1): 3, (0, 1): 4}
Policy = Callable[[Env, np.random.RandomState], int]


@pytest.fixture(scope="module", autouse=True)
def one_set_of_textures() -> Iterator[None]:
    """Loading the package's pictures for each game takes longer than playing it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Textures", functools.cache(engine.Textures))
        yield


class Ordered(dict[Any, None]):
    """A set in the order of arrival. The package keeps a chunk's things in a plain set, whose order is that of memory
    addresses, and lets one of several leave by its place there, so that two runs of the package itself differ."""

    def add(self, thing: Any) -> None:
        self[thing] = None

    def remove(self, thing: Any) -> None:
        del self[thing]


class Package:
    """A game of the package whose episodes follow one another, and which repeats."""

    def __init__(self, seed: int, **kwargs: Any) -> None:
        self.env = Env(seed=seed, **kwargs)
        empty = self.env._world.reset

        def reset(seed: int) -> None:
            empty(seed)
            self.env._world._chunks = collections.defaultdict(Ordered)

        self.env._world.reset = reset

    def reset(self) -> np.ndarray:
        return np.asarray(self.env.reset())

    def world(self) -> tuple[np.ndarray, list[tuple[str, int, int, int]]]:
        """Gives the materials, and the kind, place and health of each thing but the player."""
        things = [
            (type(each).__name__.upper(), *map(int, each.pos), int(each.health)) for each in self.env._world.objects
        ]
        return self.env._world._mat_map, things[1:]


class Group:
    """Our games with the arrays that they are stepped into, which hold rubbish at first."""

    def __init__(self, num_envs: int, seed: int = 0, env_id: str = "CrafterReward-v1", **kwargs: Any) -> None:
        made = make_backend(EnvConfig(id=env_id, kwargs=kwargs), num_envs)
        assert isinstance(made, CrafterBackend)
        self.backend = made
        shape = made.spec.observations[0].shape
        self.frames = np.full((num_envs, *shape), 99, np.uint8)
        self.reward = np.full(num_envs, 9, np.float64)
        self.terminated, self.truncated, self.valid = np.zeros((3, num_envs), np.bool_)
        made.reset(seed, {"obs": self.frames})

    def step(self, actions: np.ndarray) -> dict[int, np.ndarray]:
        """Gives the last frames of the environments whose episode ended."""
        arrays = (self.reward, self.terminated, self.truncated, self.valid)
        finals = self.backend.step(actions, {"obs": self.frames}, *arrays)
        return dict(zip(finals.indices.tolist(), finals.observation.get("obs", ()), strict=True))

    def world(self, b: int) -> tuple[np.ndarray, list[tuple[str, int, int, int]]]:
        world = self.backend._games[b]._world
        edge = world.layout.margin
        things = [(each.kind.name, each.x - edge, each.y - edge, each.health) for each in world.things]
        return world.material_map[world.layout.inner], things

    def favour(self, b: int, env: Env, gifts: tuple[str, ...]) -> None:
        """Heals and feeds the player of both games, gives it nine of each gift, and lets every plant ripen."""
        ours, theirs = self.backend._games[b], env._player
        ours.player.body.health = theirs.inventory["health"] = 9
        for name in ("food", "drink", *gifts):
            ours.player.items[ITEMS.index(name)] = theirs.inventory[name] = 9
        for one, other in zip(ours._world.things, env._world.objects[1:], strict=True):
            if isinstance(other, objects.Plant):
                one.clock = other.grown = 300


def own_seeds(seed: int, num_envs: int) -> list[int]:
    seeds: list[int] = (np.random.SeedSequence(seed).generate_state(num_envs) & 0x7FFFFFFF).tolist()
    return seeds


def anything(env: Env, random: np.random.RandomState) -> int:
    return int(random.randint(len(ACTIONS)))


def sleep(env: Env, random: np.random.RandomState) -> int:
    """Sleeps, but walks at times."""
    return int(random.randint(1, 5)) if random.uniform() < 0.05 else SLEEP


def seek(*wanted: Any) -> Policy:
    """Walks towards the nearest of some materials or kinds, tunnelling through what stands between, and touches it."""

    def policy(env: Env, random: np.random.RandomState) -> int:
        here = env._player.pos
        if random.uniform() < 0.15:
            return anything(env, random)
        found = [each.pos for each in env._world.objects if type(each) in wanted]
        for name in wanted:
            if isinstance(name, str):
                found.extend(np.argwhere(env._world._mat_map == env._world._mat_ids[name]))
        if not found:
            return anything(env, random)
        away = min((each - here for each in found), key=lambda offset: int(np.abs(offset).sum()))
        axis = int(np.abs(away[1]) > np.abs(away[0]))
        sign = int(np.sign(away[axis]))
        toward = (0, sign) if axis else (sign, 0)
        return DO if tuple(env._player.facing) == toward and random.uniform() < 0.6 else MOVES.get(toward, NOOP)

    return policy


def garden(env: Env, random: np.random.RandomState) -> int:
    """Plants saplings, and eats what it plants."""
    plant = isinstance(env._world[env._player.pos + env._player.facing][1], objects.Plant)
    return int(random.choice([DO, NOOP] if plant else [PLACE_PLANT, *MOVES.values()]))


@dataclass(frozen=True)
class Run:
    """A policy for `num_envs` games of 500 steps each, with gifts every 25 steps where it has any.

    `seed` is the group's, from which each game's own is drawn. `reaches` is what the games must come to.
    """

    seed: int
    policy: Policy
    num_envs: int
    reaches: set[str]
    gifts: tuple[str, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return own_seeds(self.seed, self.num_envs)


STEPS = 500
MIDDLING: dict[str, Any] = {"area": (26, 26)}
SMALL: dict[str, Any] = {"area": (20, 20)}
CRAFT = ("wood", "stone", "coal", "iron")
DIG = ("wood_pickaxe", "stone_pickaxe", "iron_pickaxe", "stone")
RUNS = {
    "random": Run(1, anything, 1, {"dark", "death", "wake_up"}),
    "walking": Run(2, anything, 2, {"dark", "place_table"}, CRAFT),
    "gathering": Run(10, seek("tree", "water"), 1, {"dark", "collect_wood", "collect_drink"}, CRAFT),
    "crafting": Run(3, anything, 3, {"dark", "place_furnace", "make_iron_sword"}, CRAFT, SMALL),
    "mining": Run(11, seek("diamond", "iron", "coal"), 2, {"dark", "collect_iron"}, DIG, MIDDLING),
    "hunting": Run(5, seek(objects.Zombie, objects.Cow), 2, {"dark", "defeat_zombie", "eat_cow"}, (), MIDDLING),
    "tunnels": Run(6, seek(objects.Skeleton), 2, {"dark", "defeat_skeleton"}, DIG, MIDDLING),
    "garden": Run(7, garden, 2, {"dark", "eat_plant"}, ("sapling",), SMALL),
    "sleeping": Run(8, sleep, 2, {"dark", "wake_up"}, (), SMALL),
    "cut": Run(9, anything, 3, {"cut"}, (), {"area": (20, 14), "length": 70}),
}


def compare(group: Group, packages: list[Package], run: Run) -> collections.Counter[str]:
    """Steps both side by side; counts each achievement, "death" and "cut" at the ends of the package's episodes.

    Each step counts as "light", or as "dark" where the package paints the night's noise over the picture.
    """
    random = np.random.RandomState(1)
    counted: collections.Counter[str] = collections.Counter()
    for b, package in enumerate(packages):
        assert np.array_equal(group.frames[b], package.reset())
    for step in range(STEPS):
        if run.gifts and step % 25 == 24:
            for b, package in enumerate(packages):
                group.favour(b, package.env, run.gifts)
        actions = np.array([run.policy(package.env, random) for package in packages])
        last = group.step(actions)
        for b, package in enumerate(packages):
            frame, reward, done, info = package.env.step(actions[b])
            counted["dark" if package.env._world.daylight < 0.5 else "light"] += 1
            dead = info["discount"] == 0
            assert (group.reward[b], group.terminated[b], group.truncated[b]) == (reward, dead, done and not dead)
            assert (b in last) == done
            assert np.array_equal(last.get(b, group.frames[b]), frame)
            if done:
                counted.update(["episodes", "death" if dead else "cut"])
                counted.update(name for name, times in info["achievements"].items() if times)
                assert np.array_equal(group.frames[b], package.reset())
            if done or step % 50 == 0:
                materials, things = group.world(b)
                expected_materials, expected_things = package.world()
                assert np.array_equal(materials, expected_materials)
                assert things == expected_things
    return counted


def test_what_is_compared_is_ten_thousand_steps_over_twenty_seeds() -> None:
    seeds = [seed for run in RUNS.values() for seed in run.seeds]
    assert len(seeds) == len(set(seeds)) == 20
    assert STEPS * len(seeds) == 10_000


@pytest.mark.parametrize("name", RUNS)
def test_worlds_frames_rewards_ends_and_achievements_are_the_packages(name: str) -> None:
    run = RUNS[name]
    group = Group(run.num_envs, seed=run.seed, **run.kwargs)
    packages = [Package(seed, **run.kwargs) for seed in run.seeds]
    counted = compare(group, packages, run)
    assert run.reaches | {"light"} <= set(counted)
    names = {"episodes": "episodes", **{f"achievement/{name}": name for name in ACHIEVEMENTS}}
    assert group.backend.tallies == {tally: counted[name] for tally, name in names.items()}


@pytest.mark.parametrize(
    "kwargs",
    [
        {"area": (17, 9), "view": (7, 8), "size": (100, 90)},
        {"area": (9, 26), "view": 5, "size": 61},
        {"area": (14, 13), "view": (16, 5), "size": (160, 80)},
    ],
)
def test_any_area_view_and_size_gives_the_packages_frames(kwargs: dict[str, Any]) -> None:
    group = Group(1, **kwargs)
    package = Package(own_seeds(0, 1)[0], **kwargs)
    np.testing.assert_array_equal(group.frames[0], package.reset())
    random = np.random.RandomState(0)
    for _ in range(120):
        action = anything(package.env, random)
        last = group.step(np.array([action]))
        frame, _, done, _ = package.env.step(action)
        np.testing.assert_array_equal(last.get(0, group.frames[0]), frame)
        if done:
            break


def test_nothing_is_made_at_the_left_edge_where_the_package_sees_no_table() -> None:
    kwargs: dict[str, Any] = {"area": (3, 40)}
    group, package = Group(1, **kwargs), Package(own_seeds(0, 1)[0], **kwargs)
    package.reset()
    group.favour(0, package.env, ("wood",))
    made = []
    for name in ("move_left", "move_up", "place_table", "make_wood_pickaxe", "move_right", "make_wood_pickaxe"):
        group.step(np.array([ACTIONS.index(name)]))
        package.env.step(ACTIONS.index(name))
        made.append(group.backend._games[0].player.items[ITEMS.index("wood_pickaxe")])
        assert made[-1] == package.env._player.inventory["wood_pickaxe"]
    assert made == [0, 0, 0, 0, 0, 1]


def test_a_death_in_the_last_step_terminates_and_does_not_truncate() -> None:
    group = Group(2, length=1, **SMALL)
    group.backend._games[1].player.body.health = 0
    group.step(np.array([NOOP, NOOP]))
    assert group.terminated.tolist() == [False, True]
    assert group.truncated.tolist() == [True, False]
    assert group.valid.all()


def test_the_rules_are_the_packages() -> None:
    ids = {name: number for number, name in enumerate(MATERIALS)}
    assert list(MATERIALS[1:]) == constants.materials
    assert ["health", *ITEMS] == list(constants.items)
    assert {item["max"] for item in constants.items.values()} == {rules.MOST}
    assert list(ACTIONS) == constants.actions
    assert list(ACHIEVEMENTS) == constants.achievements
    assert {ids[name] for name in constants.walkable} == rules.WALKABLE
    for name, theirs in constants.collect.items():
        ours = rules.COLLECT[ids[name]]
        needs = {} if ours.needs is None else {ITEMS[ours.needs]: 1}
        assert (needs, {ITEMS[ours.gives]: 1}) == (theirs["require"], theirs["receive"])
        assert (MATERIALS[ours.leaves], ours.chance) == (theirs["leaves"], theirs.get("probability", 1))
    for name, theirs in constants.place.items():
        place = rules.PLACE[ACTIONS.index(f"place_{name}")]
        assert {ITEMS[item]: amount for item, amount in place.uses} == theirs["uses"]
        assert {MATERIALS[material] for material in place.where} == set(theirs["where"])
        assert place.material == (ids[name] if theirs["type"] == "material" else None)
    for name, theirs in constants.make.items():
        make = rules.MAKE[ACTIONS.index(f"make_{name}")]
        assert {ITEMS[item]: amount for item, amount in make.uses} == theirs["uses"]
        assert {MATERIALS[material] for material in make.nearby} == set(theirs["nearby"])
        assert (ITEMS[make.gives], theirs["gives"]) == (name, 1)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 2])
def test_noise_is_opensimplex_to_the_last_bit(seed: int) -> None:
    random = np.random.RandomState(3)
    scattered = [(*random.uniform(-40, 60, (2, 1000)), float(z)) for z in range(3)]
    x, y = np.indices((20, 20), np.float64).reshape(2, -1)
    gridded = [(x / size, y / size, 2.0) for size in (1, 2, 3, 15)]
    library = opensimplex.OpenSimplex(seed)
    points = [*scattered, *gridded]
    for (xs, ys, z), noise in zip(points, Fields(points).under(seed), strict=True):
        expected = [library.noise3(*place, z) for place in zip(xs.tolist(), ys.tolist(), strict=True)]
        np.testing.assert_array_equal(noise, expected)


def test_without_reward_only_the_reward_differs() -> None:
    plain, silent = Group(2, **SMALL), Group(2, env_id="CrafterNoReward-v1", **SMALL)
    random = np.random.RandomState(0)
    gained = 0.0
    for _ in range(120):
        actions = random.randint(0, len(ACTIONS), 2)
        plain.step(actions)
        silent.step(actions)
        gained += np.abs(plain.reward).sum()
        np.testing.assert_array_equal(silent.reward, 0)
        np.testing.assert_array_equal(silent.frames, plain.frames)
    assert gained > 0


def test_an_environment_plays_the_same_game_in_a_group_of_any_size() -> None:
    alone, together = Group(1, seed=8, **SMALL), Group(3, seed=8, **SMALL)
    random = np.random.RandomState(0)
    for _ in range(300):
        actions = random.randint(0, len(ACTIONS), 3)
        alone.step(actions[:1])
        together.step(actions)
        np.testing.assert_array_equal(together.frames[0], alone.frames[0])
    assert not np.array_equal(together.frames[0], together.frames[1])


def test_a_second_reset_starts_the_same_games_anew() -> None:
    group = Group(2, seed=4, **SMALL)
    first = group.frames.copy()
    group.step(np.array([1, 2]))
    group.backend.reset(4, {"obs": group.frames})
    np.testing.assert_array_equal(group.frames, first)


def test_the_spec_is_one_picture_and_seventeen_actions() -> None:
    spec = Group(1, **SMALL, size=(80, 70)).backend.spec
    assert spec.observations == (ArraySpec("obs", "|u1", (70, 80, 3)),)
    assert spec.action == ActionSpec("discrete", "<i8", (), n=(17,))


def test_a_picture_is_the_frame_and_changes_nothing_by_night() -> None:
    config = EnvConfig(id="CrafterReward-v1", kwargs=SMALL)
    watched, unwatched = make_backend(config, 1, "rgb_array"), make_backend(config, 1)
    frames = np.zeros((2, 1, 64, 64, 3), np.uint8)
    flags = [np.zeros(1, np.bool_) for _ in range(3)]
    for backend, frame in zip((watched, unwatched), frames, strict=True):
        backend.reset(0, {"obs": frame})
    for _ in range(200):
        for backend, frame in zip((watched, unwatched), frames, strict=True):
            backend.step(np.array([NOOP]), {"obs": frame}, np.zeros(1), *flags)
        np.testing.assert_array_equal(watched.render(), frames[0, 0])
        np.testing.assert_array_equal(frames[1], frames[0])
    assert unwatched.render() is None


def test_the_score_is_the_geometric_mean_of_success_rates() -> None:
    none = {"episodes": 0, **{f"achievement/{name}": 0 for name in ACHIEVEMENTS}}
    assert crafter_score(none) == 0
    assert crafter_score(dict.fromkeys(none, 7)) == pytest.approx(100)
    # One achievement in every episode, another in half of them: (101 * 51) ** (1 / 22) - 1.
    some = none | {"episodes": 4, "achievement/wake_up": 4, "achievement/collect_wood": 2}
    assert crafter_score(some) == pytest.approx(0.4747634, abs=1e-7)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crafter.engine", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[crafter\]'"):
        make_backend(EnvConfig(id="CrafterReward-v1"), 1)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"seed": 3}, r"env\.kwargs\.seed=3.*the seed is the run's"),
        ({"length": "long"}, r"env\.kwargs\.length='long'"),
        ({"view": 4}, r"4 rows of them for items, show nothing.*a view with a row above the items"),
        ({"area": (0, 64)}, r"an area of \(0, 64\)"),
        ({"size": 16}, r"2 pixels to a cell"),
    ],
)
def test_settings_it_cannot_play_by_are_refused(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_backend(EnvConfig(id="CrafterReward-v1", kwargs=kwargs), 1)
