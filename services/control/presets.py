"""Chooses the preset of an algorithm for an environment, by the kind of its observations and actions."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import yaml

from common.config import CONFIGS, Config, load
from common.errors import ConfigError, nearest
from common.types import ArraySpec, EnvSpec
from services.control.compose import overlay_of

PRESETS = CONFIGS / "presets"
KINDS = {"vector": "discrete actions", "continuous": "continuous actions", "pixels": "images"}
SMALL_IMAGE = 36  # pixels a side; what is smaller does not survive the strides of the Nature network


def algorithms() -> list[str]:
    """Gives the names of the algorithms that have a preset."""
    return sorted({path.stem.rpartition("_")[0] for path in PRESETS.glob("*_*.yaml")})


def _kinds(algo: str) -> list[str]:
    return [kind for kind in KINDS if (PRESETS / f"{algo}_{kind}.yaml").exists()]


def kind_of(spec: EnvSpec) -> str:
    """Gives the kind of preset that suits an environment: vector, continuous or pixels."""
    if _images(spec):
        return "pixels"
    kinds = [part.kind for part in spec.action.parts or (spec.action,)]
    return "continuous" if "box" in kinds else "vector"


def preset_overrides(spec: EnvSpec) -> list[str]:
    """Gives what an environment needs beyond its kind's preset."""
    sides = [sorted(array.shape)[1] for array in _images(spec)]
    return ["network.name=minatar_cnn"] if sides and min(sides) < SMALL_IMAGE else []


def from_preset(algo: str, env_id: str, overrides: list[str]) -> tuple[Config, str]:
    """Gives the config of `algo` on `env_id`, and the YAML overlay it amounts to."""
    from services.env_server.backends import make_backend

    if algo not in algorithms():
        raise ConfigError(f"--algo {algo}: there is no preset", nearest(algo, algorithms()))
    chosen = load(None, [f"env.id={env_id}", *(text for text in overrides if text.startswith("env."))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the env-server's log has them, and `headrace check` says them
        backend = make_backend(chosen.env, 1, at_least=True)
    spec = backend.spec
    backend.close()
    kind = kind_of(spec)
    if kind not in _kinds(algo):
        has = " and ".join(KINDS[own] for own in _kinds(algo))
        text = f"--algo {algo} --env {env_id}: {algo} has presets for {has}, none for {KINDS[kind]}"
        others = ", ".join(name for name in algorithms() if kind in _kinds(name))
        raise ConfigError(text, f"for {KINDS[kind]} use --algo {others}; or write a config file")
    config = load(
        PRESETS / f"{algo}_{kind}.yaml", [f"env.id={env_id}", *preset_overrides(spec), *_goal(env_id), *overrides]
    )
    return config, yaml.safe_dump(overlay_of(config, load(None, (), {})), sort_keys=False, default_flow_style=None)


def _goal(env_id: str) -> list[str]:
    """Gives the return at which Gymnasium calls an environment solved, if it says so, as what ends the job."""
    known = gymnasium.registry.get(env_id)
    return [] if known is None or known.reward_threshold is None else [f"stop.episode_return={known.reward_threshold}"]


def _images(spec: EnvSpec) -> list[ArraySpec]:
    return [array for array in spec.observations if len(array.shape) == 3 and np.dtype(array.dtype).kind in "ub"]
