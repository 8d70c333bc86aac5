"""The names of the algorithms; each, and torch with it, is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, nearest
from common.rl.settings import load_attribute

if TYPE_CHECKING:
    from pydantic import BaseModel

    from common.rl.actor import Actor
    from common.rl.algorithms.base import Algorithm
    from common.types import EnvSpec

ALGORITHMS: dict[str, tuple[str, str]] = {
    "a2c": ("common.rl.algorithms.a2c:A2C", "advantage actor-critic, one synchronous step per batch"),
    "ppo": ("common.rl.algorithms.ppo:PPO", "clipped surrogate, several epochs over each batch"),
    "appo": ("common.rl.algorithms.ppo:APPO", "PPO on asynchronous data, with or without V-trace"),
    "impala": ("common.rl.algorithms.impala:IMPALA", "actor-critic on asynchronous data, corrected by V-trace"),
    "laser": ("common.rl.algorithms.impala:LASER", "IMPALA on fresh and replayed unrolls, within a trust region"),
    "dqn": (
        "common.rl.algorithms.dqn:DQN",
        "Q-learning from replay; double, dueling, C51, QR, Rainbow and Ape-X by setting",
    ),
    "r2d2": ("common.rl.algorithms.r2d2:R2D2", "recurrent Q-learning on sequences, from stored states"),
    "sac": ("common.rl.algorithms.sac:SAC", "soft actor-critic on Box or discrete actions; TQC by setting"),
    "td3": ("common.rl.algorithms.td3:TD3", "deterministic policy gradient, twin critics, delayed policy"),
    "ddpg": ("common.rl.algorithms.td3:DDPG", "deterministic policy gradient, one critic, noise that drifts"),
}


def algorithm_class(name: str) -> type[Algorithm]:
    """Gives the class of a built-in name or of package.module:attr; ConfigError names the nearest and lists all."""
    if ":" in name:
        path = name
    elif name in ALGORITHMS:
        path = ALGORITHMS[name][0]
    else:
        raise ConfigError(f"algorithm.name: there is no {name!r}", nearest(name, ALGORITHMS))
    loaded: type[Algorithm] = load_attribute(path, "algorithm.name")
    return loaded


def named_algorithm(section: Mapping[str, Any]) -> tuple[type[Algorithm], dict[str, Any]]:
    """Gives the class that an `algorithm` section names, and the rest of the section."""
    options = dict(section)
    return algorithm_class(str(options.pop("name", "ppo"))), options


def settings_model(section: Mapping[str, Any]) -> type[BaseModel] | None:
    """Gives the model of a built-in algorithm's settings; None where the section names somebody's own algorithm."""
    name = str(section.get("name", "ppo"))
    return load_attribute(f"{ALGORITHMS[name][0]}Config", "algorithm.name") if name in ALGORITHMS else None


def make_actor(section: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> Actor:
    """Builds what acts for the algorithm that an `algorithm` section names."""
    algorithm, options = named_algorithm(section)
    return algorithm.make_actor(options, network, env, seed)
