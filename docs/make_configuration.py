"""Writes docs/configuration.md from the models that validate a config: `python docs/make_configuration.py`.

Owns the page's prose and, until a model says it itself, the meaning of a key. A key without a meaning is an error.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel

from common.config import Config
from common.rl.networks import BUILT_IN, NetworkConfig
from common.rl.registry import ALGORITHMS, settings_model
from services.env_server.backends.atari import AtariOptions
from services.env_server.backends.crafter import Options as CrafterOptions
from services.env_server.backends.null import NullConfig

PAGE = Path(__file__).with_name("configuration.md")

INTRO = """\
# Configuration

<!-- Written by docs/make_configuration.py from the models. Do not edit by hand. -->

A job is one frozen config. It is made from these, the weakest first:

1. `configs/defaults.yaml`
2. the config file on the command line, an overlay of YAML
3. environment variables: `HEADRACE_LEARNER__LR=3e-4` sets `learner.lr`. Two underscores are a dot; case is ignored.
4. `key=value` on the command line: `learner.lr=3e-4`. The value is YAML, so `network.hidden=[128,128]` is a list.

Mappings merge, everything else replaces; an empty mapping, as in `env.kwargs={}`, empties the one below it. A key that
does not exist, or a value out of bounds, ends the command at once with exit code 2; the error names the key, the value
and the nearest valid key. `network`, `algorithm` and `env.kwargs` are read by the services that use them alone: there
it ends the job soon after these have started, in the same way.

`headrace train` writes the whole config to `config.yaml` in the run's directory. That file is what `--resume`,
`evaluate` and `plot` read.
"""

RULES = """\
## Rules between keys

- Each name in `rollout.tables` must be a key of `replay.tables`, and `learner.table` one of these names. Nobody draws
  from a table that is neither that nor `learner.replayed.table`: it may not be a `fifo` of `rollout.tables`, nor have
  `samples_per_insert`.
- What a table of its kind does not look at must stay at its default: `alpha` wants `prioritized`, `n_step`, `discount`
  and `reward_clip` transitions, `period` and `burn_in` a `sequence`, and all of a ring's keys another kind than `fifo`.
- A `fifo` table with `replay.max_policy_lag` 0 wants `learner.batch` 0: a batch is one unroll of each live group.
- A `fifo` table with `replay.max_policy_lag` above 0 wants `learner.batch` between 1 and the table's `capacity`.
- Another table wants `learner.batch` between 1 and the table's `capacity`, and refuses `samples_per_insert` with an
  `error_buffer` so small that inserts and draws could wait for each other for ever. The error names the smallest value
  that works.
- `n_step` above 1 wants `discount`, and `sequence` a `period` that is a multiple of `rollout.unroll`. Sequences, and
  transitions of n steps, want a `capacity` in which one fits for each environment.
- `learner.replayed.table` names a table of kind `unrolls` among `rollout.tables`, beside an asynchronous `fifo` one.
  Stored steps are of any age: of the built-in algorithms `impala` and `laser` take them, while their `vtrace` or
  `trust_region` is on.
- `learner.publish_every` and `replay.servers` above 1 want `replay.max_policy_lag` above 0, or a table that is no
  `fifo`. There may be as many replay-servers as groups: `env.servers` times `env.groups`.
- `learner.per_request` above 1 wants a table that is no `fifo`.
- `her.k` above 0 wants transitions of one step without `reward_clip`, and `algorithm.reward`.
- `learner.replicas` above 1 wants a `fifo` table, an `env.envs` that is a multiple of it, and `learner.device` `cpu` or
  `cuda`.
- `inference.hold_back` above 0 wants, with a `fifo` table, a `replay.max_policy_lag` that leaves room for the versions
  which pass while unrolls wait. The error names the smallest value that works.
- What falls with the job, `learner.lr_schedule`, `algorithm.clip_schedule`, `algorithm.noise.schedule` or an
  `algorithm.epsilon` without `steps`, wants `stop.steps`, `stop.frames` or `stop.seconds`.
- `algorithm.importance` below 1 wants one of them too, with a table of transitions that is `prioritized` or has
  `newest`: it rises to 1 by their end.
- What another setting leaves unread must stay at its default: `algorithm.noise.theta` of Gaussian noise, `v_max` of a
  `head` that is no `c51`, `algorithm.epsilon.end` with `actors`, `algorithm.importance` where the table is
  not prioritized; `learner.alpha` wants `rmsprop`.
- tcp off the loopback wants `net.keys`, or `net.security=plain`.
- `ipc://` paths may have 100 bytes at most.
- Start all processes of one job with the same settings. Only `net` and `metrics` may differ between them.
"""

# What opens each section of the page.
SECTIONS = {
    "run": "The run and its directory.",
    "env": "The environment, and how many of it.",
    "rollout": "How experience is cut into unrolls.",
    "inference": "The forward pass.",
    "replay": "The tables between env-servers and learner.",
    "learner": "The update and what surrounds it.",
    "stop": "When the job is done: at the first of these that holds.",
    "net": (
        "Addresses and patience. `headrace train` puts `ipc://` sockets in place of the default addresses; "
        "addresses of your own stay. A service binds the address that its clients connect to."
    ),
    "metrics": "The HTTP port of each service.",
    "network": (
        "The policy's network. Inference-server and learner read this section; the others pass over it. "
        f"Built-in names: {', '.join(f'`{name}`' for name in BUILT_IN)}; or `package.module:attr`, "
        "see [extending](extending.md)."
    ),
}

ALGORITHM = (
    "Learner and inference-server read this section. `algorithm.name` decides which keys it takes; it is a name below, "
    "or `package.module:attr`, see [extending](extending.md). The optimiser is set in `learner`. "
    "[Algorithms](algorithms.md) says what each computes."
)

KWARGS = (
    "`env.kwargs` are what the environment's own constructor takes, of classic control and MuJoCo too. These are made "
    "by Headrace, and take:"
)
# The native families whose `env.kwargs` are their own: the ids, the model, and what to say of it.
NATIVE = (
    (
        "`ALE/<Game>-v5`",
        AtariOptions,
        "`env.vectorized=false` gives Gymnasium's plain environment, which takes its own arguments.",
    ),
    ("`CrafterReward-v1` and `CrafterNoReward-v1`", CrafterOptions, "As the package's constructor takes them."),
    ("`headrace/Null-v0`", NullConfig, "An environment that simulates nothing, for measuring the pipeline."),
)

# Keys whose models say nothing of them.
MEANINGS = {
    "replay.tables": "the tables by a name of yours; the default job has one, `experience`",
    "replay.tables.<name>.her": "hindsight: what replaces the goals of transitions (Andrychowicz et al., 2017)",
    "learner.replayed": "stored unrolls that are mixed into each batch of new ones, as LASER wants them",
    "learner.checkpoint": "when checkpoints are written and how many are kept",
    "network.encoders.<name>.name": "a built-in network, or `package.module:attr`",
    "network.encoders.<name>.hidden": "widths of its MLP's layers",
    "network.encoders.<name>.activation": "of its MLP's layers",
    "env.kwargs.area": "cells of the world",
    "env.kwargs.view": "cells that are seen, the rows of items among them; one number: a square",
    "env.kwargs.size": "pixels of the observation, width and height; one number: a square",
    "env.kwargs.reward": "achievements and health are rewarded; `CrafterNoReward-v1`: false",
    "env.kwargs.length": "steps after which an episode is truncated; null or 0: never",
    "env.kwargs.dtype": "of the observation, as numpy writes it",
}


class Row(NamedTuple):
    """One key as the page shows it."""

    key: str
    type: str
    default: str
    bounds: str
    meaning: str


def rows(model: type[BaseModel], section: str, values: Any = None) -> Iterator[Row]:
    """Gives the rows of one section, those of a model within it after its own; the defaults are those in `values`.

    Raises KeyError for a key of which neither model nor MEANINGS says anything.
    """
    for name, info in model.model_fields.items():
        key, default = f"{section}.{name}", info.get_default(call_default_factory=True)
        if isinstance(values, model):
            default = getattr(values, name)
        meaning = info.description or MEANINGS[key]
        yield Row(key, _type(info.annotation), _show(default), _bounds(info.metadata), meaning)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from rows(kind, f"{key}.<name>" if get_origin(info.annotation) is dict else key, default)


def page() -> str:
    """Gives the whole page."""
    parts = [INTRO]
    for name, info in Config.model_fields.items():
        if name not in ("network", "algorithm"):
            assert isinstance(info.annotation, type)
            parts.append(_section(name, info.annotation))
        if name == "env":
            parts.append(f"{KWARGS}\n")
            parts += [
                f"### `env.kwargs` of {ids}\n\n{text}\n\n{_table(rows(model, 'env.kwargs'))}"
                for ids, model, text in NATIVE
            ]
    parts.append(_section("network", NetworkConfig))
    parts.append(f"## `algorithm`\n\n{ALGORITHM}\n")
    parts += [f"### `{name}`\n\n{line[0].upper()}{line[1:]}.\n\n{_table(model)}" for name, line, model in _algorithms()]
    parts.append(RULES)
    return "\n".join(parts)


def _algorithms() -> Iterator[tuple[str, str, Iterator[Row]]]:
    for name, (_, line) in ALGORITHMS.items():
        model = settings_model({"name": name})
        assert model is not None
        yield name, line, rows(model, "algorithm")


def _section(name: str, model: type[BaseModel]) -> str:
    return f"## `{name}`\n\n{SECTIONS[name]}\n\n{_table(rows(model, name))}"


def _table(found: Iterable[Row]) -> str:
    lines = ["| key | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    for row in found:
        cells = (f"`{row.key}`", row.type, f"`{row.default}`" if row.default else "", row.bounds, row.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _show(value: Any) -> str:
    parts = value.values() if isinstance(value, dict) else (value,)
    return "" if any(isinstance(part, BaseModel) for part in parts) else json.dumps(value)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if choice is type(None) else _type(choice) for choice in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    return {int: "int", float: "float", str: "text", bool: "bool", typing.Any: "any"}[annotation]


def _bounds(metadata: list[Any]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = []
    for bound in metadata:
        for name, sign in signs.items():
            if hasattr(bound, name):
                found.append(f"{sign} {getattr(bound, name)}")
        if isinstance(bound, annotated_types.MinLen):
            found.append(f"entries ≥ {bound.min_length}")
        if isinstance(bound, annotated_types.MaxLen):
            found.append(f"entries ≤ {bound.max_length}")
    return ", ".join(found)


if __name__ == "__main__":
    PAGE.write_text(page())
