"""What an algorithm wants of the job around it: items of its kind, rewards for exchanged goals, an end to fall to.

A job without is refused before the work. Knows no tensor and no service.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgpack
from pydantic import BaseModel

from common.codec import MAX_HEADER_BYTES
from common.config import Config, StopConfig, TableConfig
from common.errors import ConfigError
from common.rl.algorithms.base import Batches
from common.rl.exploration import EpsilonConfig
from common.rl.goals import check_hindsight_reward
from common.rl.registry import named_algorithm, settings_model
from common.rl.settings import read_settings
from common.types import EnvSpec, PolicySpec

# The arrays of an unroll, besides those of the specs: of (steps, environments), and of lengths that vary.
_PER_STEP = ("first", "reward", "terminated", "truncated", "valid", "versions", "reward_before")
_PER_EPISODE = dict.fromkeys(("final_index", "episode_returns", "episode_lengths"), (1 << 31,))
_REST_BYTES = 1 << 16  # what else is in a Batch's header, such as the names of missing groups
_KINDS = {"unrolls": "fifo", "transitions": "uniform or prioritized", "sequences": "prioritized, with a sequence"}


def check_job(config: Config) -> None:
    """Raises ConfigError unless the algorithm that `config` names can train in that job as it is set."""
    algorithm, options = named_algorithm(config.algorithm)
    name = config.learner.table
    table = config.replay.tables[name]
    if (gives := _gives(table)) != algorithm.batches:
        raise ConfigError(
            f"replay.tables.{name}.kind={table.kind!r} gives {gives}, "
            f"{algorithm.__name__} trains on {algorithm.batches}",
            f"set it to {_KINDS[algorithm.batches]}",
        )
    if (mixed := config.learner.replayed.table) and not getattr(algorithm, "mixes", False):
        raise ConfigError(
            f"learner.replayed.table={mixed!r} mixes in steps of any age: {algorithm.__name__} does not correct that",
            "leave it empty, or set algorithm.name to laser or impala",
        )
    if (lag := config.replay.max_policy_lag) and getattr(algorithm, "synchronous", False):
        text = f"replay.max_policy_lag={lag} lets in older policies' steps: {algorithm.__name__} does not correct that"
        raise ConfigError(text, "set it to 0, or algorithm.name to appo or impala")
    check_hindsight_reward(name, table.her.k, options)
    if (model := settings_model(config.algorithm)) is not None:
        settings = read_settings(model, options, "algorithm")
        if mixed and not getattr(settings, "vtrace", True) and not getattr(settings, "trust_region", None):
            text = f"learner.replayed.table={mixed!r} mixes in steps of any age: algorithm.vtrace=false corrects no age"
            raise ConfigError(text, "leave it empty, or set algorithm.vtrace to true")
        check_schedules(settings, config.stop)
        _check_priorities(settings, name, table)
        _check_importance(settings, table, config.stop)
        if table.burn_in > (own := getattr(settings, "burn_in", 0)):
            text = f"replay.tables.{name}.burn_in={table.burn_in} keeps back what algorithm.burn_in={own} learns from"
            raise ConfigError(text, f"set it to {own}")


def check_batch(config: Config, env: EnvSpec, policy: PolicySpec) -> None:
    """Raises ConfigError where a batch has more unrolls than one message can name the arrays of."""
    if config.replay.tables[config.learner.table].kind != "fifo":
        return
    groups = config.env.servers * config.env.groups
    unrolls = config.learner.batch or groups
    steps, envs = config.rollout.unroll, config.env.envs
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PER_STEP, (steps + 1, envs)) | dict(_PER_EPISODE)
    shapes |= {"action": (steps, envs, *env.action.shape)}
    for seen in env.observations:
        shapes[f"observation.{seen.name}"] = (steps + seen.stack, envs, *seen.shape)
        shapes[f"final.{seen.name}"] = (steps * envs, *seen.shape)
    shapes |= {f"extras.{extra.name}": (steps, envs, *extra.shape) for extra in policy.extras}
    shapes |= {f"state.{state.name}": (envs, *state.shape) for state in policy.state}
    each = sum(len(msgpack.packb((f"{unrolls}/{name}", "<f4", shape))) for name, shape in shapes.items())
    if unrolls > (most := (MAX_HEADER_BYTES - _REST_BYTES) // each):
        key = "learner.batch" if config.learner.batch else "env.groups times env.servers"
        text = f"{key}={unrolls} is more unrolls than a message can carry, each with {len(shapes)} arrays"
        raise ConfigError(text, f"set it to {most} or less, and rollout.unroll or env.envs higher instead")


def check_schedules(settings: BaseModel, stop: StopConfig) -> None:
    """Raises ConfigError where something is to fall with the job's budget, and there is none: it would never move."""
    if _has_budget(stop):
        return
    for key, value, instead in _falling(settings, "algorithm"):
        raise ConfigError(f"{key}={value} has no end to fall to", f"set stop.steps, frames or seconds, or {instead}")


def _check_priorities(settings: BaseModel, name: str, table: TableConfig) -> None:
    """Raises ConfigError for a key of priorities that is set where the table has none."""
    if table.kind == "prioritized":
        if table.her.k and getattr(settings, "actor_priorities", False):
            text = f"algorithm.actor_priorities=True is of other goals than those of replay.tables.{name}.her.k"
            raise ConfigError(text, "leave it out, or set her.k to 0")
        return
    # What `newest` makes likelier is weighed too.
    for key in ("actor_priorities", "largest", *(() if table.newest else ("importance",))):
        info = type(settings).model_fields.get(key)
        if info is not None and (value := getattr(settings, key)) != info.default:
            text = f"algorithm.{key}={value} does nothing with replay.tables.{name}.kind={table.kind}"
            raise ConfigError(text, "leave it out, or set the table's kind to prioritized")


def _check_importance(settings: BaseModel, table: TableConfig, stop: StopConfig) -> None:
    # What trains on sequences keeps its exponent; where all items are as likely, the weights are 1 whatever it is.
    rises = (table.kind == "prioritized" or table.newest > 0) and not table.sequence
    start = getattr(settings, "importance", 1.0)
    if rises and start < 1.0 and not _has_budget(stop):
        text = f"algorithm.importance={start} has no end at which it would be 1"
        raise ConfigError(text, "set stop.steps, frames or seconds, or algorithm.importance to 1")


def _has_budget(stop: StopConfig) -> bool:
    return bool(stop.steps or stop.frames or stop.seconds)


def _falling(settings: BaseModel, section: str) -> Iterator[tuple[str, object, str]]:
    """Gives what falls with the budget: key, value, and what to set where there is none."""
    for name, value in settings:
        key = f"{section}.{name}"
        if isinstance(value, EpsilonConfig):
            if not value.actors and not value.steps and value.start != value.end:
                yield f"{key}.share", value.share, f"{key}.steps"
        elif isinstance(value, BaseModel):
            yield from _falling(value, key)
        elif name.endswith("schedule") and value == "linear":
            yield key, value, f"{key} to constant"


def _gives(table: TableConfig) -> Batches:
    if table.kind in ("fifo", "unrolls"):
        return "unrolls"
    return "sequences" if table.sequence else "transitions"
