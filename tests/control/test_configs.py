"""Every file in configs/ is a job that can be started."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from benchmarks.results import JOBS, Job
from common.config import CONFIGS, Config, EnvConfig, load
from common.errors import ConfigError
from common.rl.algorithms.base import Algorithm
from common.rl.registry import ALGORITHMS, algorithm_class, make_actor
from common.types import ActionSpec, ArraySpec, EnvSpec
from services.control.presets import PRESETS, algorithms, from_preset, kind_of, preset_overrides
from services.env_server.backends import make_backend
from services.learner_server.trainer import Trainer

FILES = sorted(CONFIGS.rglob("*.yaml"))
DISCRETE = ActionSpec("discrete", "<i8", (), (2,))
BOX = ActionSpec("box", "<f4", (1,), (), (-1.0,), (1.0,))


# What is a setting of an algorithm, and not one of its own.
SETTINGS: dict[str | None, str] = {"c51": "dqn", "qrdqn": "dqn", "rainbow": "dqn", "apex": "dqn", "tqc": "sac"}
# Q-networks choose among actions; deterministic policies do not.
DISCRETE_ONLY, CONTINUOUS_ONLY = {"vector", "pixels"}, {"continuous"}
KINDS = {"dqn": DISCRETE_ONLY, "r2d2": DISCRETE_ONLY, "td3": CONTINUOUS_ONLY, "ddpg": CONTINUOUS_ONLY}
# One id of each family of environments, by its actions.
DISCRETE_IDS = ("CartPole-v1", "LunarLander-v3", "ALE/Pong-v5", "MinAtar/Breakout-v1", "CrafterReward-v1")
BOX_IDS = ("Pendulum-v1", "LunarLanderContinuous-v3", "HalfCheetah-v5")
# Where there is no preset for want of such actions, the section of a preset for this one says so to the algorithm.
OWN_ID = {"dqn": "CartPole-v1", "r2d2": "CartPole-v1", "td3": "Pendulum-v1", "ddpg": "Pendulum-v1"}


def takes(name: str, env_id: str) -> bool:
    """Says whether an algorithm takes actions such as an environment's."""
    return name not in KINDS or (KINDS[name] == CONTINUOUS_ONLY) == (env_id in BOX_IDS)


PAIRS = [(name, env_id) for name in ALGORITHMS for env_id in (*DISCRETE_IDS, *BOX_IDS)]
TAKEN = [pytest.param(*pair, id="-".join(pair)) for pair in PAIRS if takes(*pair)]
REFUSED = [pytest.param(*pair, id="-".join(pair)) for pair in PAIRS if not takes(*pair)]


@functools.cache
def spec_of(env_id: str, kwargs: str = "{}") -> EnvSpec:
    backend = make_backend(EnvConfig(id=env_id, kwargs=json.loads(kwargs)), 1, at_least=True)
    backend.close()
    return backend.spec


def learner_takes(config: Config) -> bool:
    """Makes what the learner makes of a config; raises what the learner would end with."""
    spec = spec_of(config.env.id, json.dumps(config.env.kwargs))
    return Trainer(config, spec, ordinal=1).updates == 0


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PRESETS], ids=lambda path: path.stem)
def test_a_file_is_a_job_that_its_learner_takes(path: Path) -> None:
    assert learner_takes(load(path, (), {}))


@pytest.mark.parametrize("job", [job for job in JOBS if job.config == "one_for_all"], ids=lambda job: job.environment)
def test_one_set_of_settings_is_a_job_on_every_environment_that_the_results_show(job: Job) -> None:
    config = load(CONFIGS / "one_for_all.yaml", job.settings.split(), {})
    assert config.env.id == job.environment
    assert learner_takes(config)


@pytest.mark.parametrize(("name", "env_id"), TAKEN)
def test_an_algorithm_has_a_preset_that_its_learner_takes_for_every_family_of_its_actions(
    name: str, env_id: str
) -> None:
    config, _ = from_preset(name, env_id, [])
    assert (config.algorithm["name"], config.env.id) == (name, env_id)
    assert learner_takes(config)


@pytest.mark.parametrize(("name", "env_id"), REFUSED)
def test_an_algorithm_has_no_preset_for_actions_that_it_refuses(name: str, env_id: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has presets for .*, none for "):
        from_preset(name, env_id, [])
    config, _ = from_preset(name, OWN_ID[name], [])
    with pytest.raises(ConfigError, match=r"takes (Box actions|one discrete action)") as refused:
        make_actor(config.algorithm, config.network, spec_of(env_id), 1)
    assert f"{env_id!r} has {spec_of(env_id).action.kind} " in str(refused.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_named_after_its_algorithm(path: Path) -> None:
    config = load(path, (), {})
    loaded: type[Algorithm] = algorithm_class(config.algorithm["name"])
    setting = next((word for word in path.stem.split("_") if word in SETTINGS), None)
    assert path.stem in ("defaults", "one_for_all") or config.algorithm["name"] in SETTINGS.get(setting, path.stem)
    assert loaded.__name__.lower() == config.algorithm["name"]


def test_tables_of_r2d2_keep_out_sequences_that_end_within_its_burn_in() -> None:
    jobs = [(path.stem, load(path, (), {})) for path in FILES if "r2d2" in path.stem]
    kept_back = {name: (job.replay.tables["experience"].burn_in, job.algorithm.get("burn_in")) for name, job in jobs}
    # Without a setting it is the algorithm's own 40.
    assert kept_back == {
        "cartpole_positions_r2d2": (10, 10),
        "crafter_r2d2": (20, 20),
        "lunarlander_r2d2": (10, 10),
        "minatar_breakout_r2d2": (10, 10),
        "pong_r2d2": (20, 20),
        "spread_r2d2": (5, 5),
        "r2d2_pixels": (40, None),
        "r2d2_vector": (10, 10),
    }


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
