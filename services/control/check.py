"""Says whether an environment will run here: its spec, Gymnasium's checks, its speed, and which preset suits it."""

from __future__ import annotations

import re
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env as gymnasium_check
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.config import EnvConfig, load
from common.errors import ConfigError, HeadraceError
from common.types import ActionSpec, ArraySpec
from services.control.presets import kind_of
from services.control.stepping import random_actions, step_rows
from services.control.words import count
from services.env_server.backends import Backend, make_backend, raised

MEASURE_S = 1.0
CHECK_EVERY = 16
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def check_env(env_id: str, settings: list[str]) -> None:
    """Prints what `headrace check` reports; raises ConfigError where the environment will not run."""
    console = Console()
    if env_id.endswith((".yaml", ".yml")):
        raise ConfigError(f"{env_id} is a config file", "name its environment, as in `headrace check CartPole-v1`")
    config = load(None, [*settings, f"env.id={env_id}"]).env
    remarks: set[str] = set()
    with _remarked(remarks), _named(env_id, "constructor"):
        single = make_backend(config, 1, at_least=True)
        group = make_backend(config, config.envs, at_least=True)
    spec = single.spec
    said = [*run_checker(config, remarks), *map(escape, sorted(remarks))]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for array in spec.observations:
        table.add_row("observation", _show_array(array))
    table.add_row("action", _show_action(spec.action))
    table.add_row("frames", f"{spec.frame_skip} per step")
    table.add_row("vector", _STEPPED.get(type(group).__name__, "its own implementation"))
    for backend, label in ((single, f"group of {single.num_envs}"), (group, f"group of {group.num_envs}")):
        table.add_row("speed", f"[bold]{count(measure(backend))}[/] steps/s  [dim]{label}, random actions, one core[/]")
        backend.close()
    table.add_row("checker", "\n".join(said) if said else "[green]passed, nothing to remark[/]")
    command = shlex.join(["headrace", "train", "--algo", "ppo", "--env", env_id, *settings])
    table.add_row("preset", f"{kind_of(spec)}: [bold]{escape(command)}[/]")
    console.print(f"[bold green]{escape(env_id)} will run[/]", highlight=False)
    console.print(table, highlight=False)


def run_checker(config: EnvConfig, remarks: set[str]) -> list[str]:
    """Gives why Gymnasium's environment checker stops or is not run, and adds to `remarks` what it remarks.

    Much of that matters to other users than a pipeline.
    """
    if config.id not in gymnasium.registry:
        return ["not run: it is for ids registered with Gymnasium"]
    with _remarked(remarks):
        try:
            env = gymnasium.make(config.id, disable_env_checker=True, **config.kwargs).unwrapped
        except TypeError as error:
            return [f"not run: env.kwargs are the native backend's own ({escape(str(error))})"]
        try:
            gymnasium_check(env, skip_render_check=True)
        except Exception as error:
            return [f"[yellow]it stops at:[/] {escape(str(error))}"]
        finally:
            env.close()
    return []


@contextmanager
def _remarked(remarks: set[str]) -> Iterator[None]:
    """Adds the warnings that come meanwhile to `remarks`, once each, and keeps them from stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            remarks |= {_ANSI.sub("", str(warning.message)).removeprefix("WARN: ") for warning in caught}


_STEPPED = {
    "LoopBackend": "none of its own: environments step in a loop",
    "ParallelBackend": "none of its own: env.envs counts agents, and environments step in a loop",
}


def measure(backend: Backend) -> float:
    """Gives the steps per second of `backend` under random actions, over about a second."""
    n = backend.num_envs
    rng = np.random.default_rng(0)
    rows = step_rows(backend.spec, n)
    actions = [random_actions(backend.spec.action, n, rng) for _ in range(64)]
    with _named(backend.spec.id, "reset"):
        backend.reset(0, rows.observation)
    began, steps, turns = time.perf_counter(), 0, 0
    with _named(backend.spec.id, "step"):
        while turns % CHECK_EVERY or time.perf_counter() - began < MEASURE_S:
            backend.step(actions[turns % len(actions)], *rows)
            steps += int(rows.valid.sum())
            turns += 1
    for what, array in (*((f"observation {k!r}", a) for k, a in rows.observation.items()), ("reward", rows.reward)):
        if not np.isfinite(array).all():
            raise ConfigError(f"env.id={backend.spec.id!r}: its {what} is not finite", "mend it: NaN teaches nothing")
    return steps / (time.perf_counter() - began)


@contextmanager
def _named(env_id: str, call: str) -> Iterator[None]:
    """Makes a ConfigError of what an environment's own code raises, with the place where it did."""
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        raise raised(env_id, call, error) from error


def _show_array(array: ArraySpec) -> str:
    return f"{array.name}: {np.dtype(array.dtype).name}{list(array.shape)}"


def _show_action(action: ActionSpec) -> str:
    if action.parts:
        return "; ".join(map(_show_action, action.parts))
    if action.kind == "box":
        return f"box{list(action.shape)} {np.dtype(action.dtype).name} in {_range(action.low)} to {_range(action.high)}"
    return f"{action.kind} {' x '.join(map(str, action.n))}"


def _range(bound: tuple[float, ...]) -> str:
    return f"{bound[0]:g}" if len(set(bound)) == 1 else str([round(x, 3) for x in bound])
