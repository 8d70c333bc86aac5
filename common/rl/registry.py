"""The names of the algorithms; each, and torch with it, is imported only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.rl.settings import load_attribute, nearest

if TYPE_CHECKING:
    from common.rl.algorithms.base import Algorithm

ALGORITHMS: dict[str, tuple[str, str]] = {
    "a2c": ("common.rl.algorithms.a2c:A2C", "advantage actor-critic, one synchronous step per batch"),
    "ppo": ("common.rl.algorithms.ppo:PPO", "clipped surrogate, several epochs over each batch"),
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
