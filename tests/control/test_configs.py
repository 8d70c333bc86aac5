"""Every file in configs/ is a job that can be started."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import CONFIGS, load
from common.rl.algorithms.base import Algorithm
from common.rl.networks import read_network
from common.rl.registry import ALGORITHMS, algorithm_class
from common.types import ActionSpec, ArraySpec, EnvSpec
from services.control.presets import PRESETS, algorithms, from_preset, kind_of, preset_overrides

FILES = sorted(CONFIGS.rglob("*.yaml"))
DISCRETE = ActionSpec("discrete", "<i8", (), (2,))
BOX = ActionSpec("box", "<f4", (1,), (), (-1.0,), (1.0,))


# What is a setting of an algorithm, and not one of its own.
SETTINGS: dict[str | None, str] = {"c51": "dqn", "qrdqn": "dqn", "rainbow": "dqn", "apex": "dqn", "tqc": "sac"}
# Q-networks choose among actions; deterministic policies do not.
DISCRETE_ONLY, CONTINUOUS_ONLY = {"vector", "pixels"}, {"continuous"}
KINDS = {"dqn": DISCRETE_ONLY, "r2d2": DISCRETE_ONLY, "td3": CONTINUOUS_ONLY, "ddpg": CONTINUOUS_ONLY}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_makes_a_valid_config_whose_network_and_algorithm_exist(path: Path) -> None:
    config = load(path, (), {})
    read_network(config.network)
    loaded: type[Algorithm] = algorithm_class(config.algorithm["name"])
    setting = next((word for word in path.stem.split("_") if word in SETTINGS), None)
    assert path.stem in ("defaults", "one_for_all") or config.algorithm["name"] in SETTINGS.get(setting, path.stem)
    assert loaded.__name__.lower() == config.algorithm["name"]


def test_a_preset_ends_the_job_where_gymnasium_calls_it_solved_unless_told_otherwise() -> None:
    assert from_preset("ppo", "CartPole-v1", [])[0].stop.episode_return == 475.0
    assert from_preset("ppo", "CartPole-v1", ["stop.episode_return=null"])[0].stop.episode_return is None
    assert from_preset("ppo", "Pendulum-v1", [])[0].stop.episode_return is None


def test_there_is_a_preset_for_each_algorithm_and_kind() -> None:
    names = {path.stem for path in PRESETS.glob("*.yaml")}
    every = {"vector", "continuous", "pixels"}
    assert names == {f"{algo}_{kind}" for algo in ALGORITHMS for kind in KINDS.get(algo, every)}
    assert algorithms() == sorted(ALGORITHMS)


@pytest.mark.parametrize(
    ("array", "action", "kind", "overrides"),
    [
        (ArraySpec("obs", "<f4", (4,)), DISCRETE, "vector", []),
        (ArraySpec("obs", "<f4", (3,)), BOX, "continuous", []),
        (ArraySpec("obs", "|u1", (4, 84, 84)), DISCRETE, "pixels", []),
        (ArraySpec("obs", "|b1", (10, 10, 4)), DISCRETE, "pixels", ["network.name=minatar_cnn"]),
        (ArraySpec("obs", "<f4", (4, 84, 84)), DISCRETE, "vector", []),
    ],
)
def test_the_preset_follows_observations_and_actions(
    array: ArraySpec, action: ActionSpec, kind: str, overrides: list[str]
) -> None:
    spec = EnvSpec("x", (array,), action)
    assert kind_of(spec) == kind
    assert preset_overrides(spec) == overrides
