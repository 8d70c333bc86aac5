"""`headrace bench collect`: the pipeline without a learner, its limit, and Gymnasium's own ways, in turn in one run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import gymnasium

from common.config import Config
from common.errors import ConfigError
from services.control.bench import peers
from services.control.bench.pipeline import WARM_S, Measured, open_pipeline
from services.control.bench.report import Report, Row
from services.control.bench.subjects import (
    ATARI,
    VECTOR,
    async_vector_env,
    bare_loop,
    numpy_cartpole,
    rate,
    step_alone,
    step_and_infer,
    stock_crafter,
)
from services.control.compose import overlay_of

TUNED, DEFAULT, LIMIT = "ours, tuned", "ours, default", "limit, no messages"
PLAIN = "limit, plain numpy"

Say = Callable[[str], object]
Subjects = Mapping[str, Callable[[], float]]


def pipeline_rate(config: Config, seconds: float) -> Measured:
    """Measures one config in processes of its own, started afresh."""

    async def run() -> Measured:
        async with open_pipeline() as pipeline:
            return await pipeline.run(config, seconds, warm_s=max(WARM_S, seconds / 5))

    return asyncio.run(run())


def interleave(subjects: Subjects, repeat: int, say: Say) -> dict[str, tuple[float, ...]]:
    """Measures every subject in turn, `repeat` times: what the machine does meanwhile happens to all of them."""
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for repetition in range(1, repeat + 1):
        for name, measure in subjects.items():
            say(f"{repetition} of {repeat}: {name}")
            rates[name].append(measure())
    return {name: tuple(values) for name, values in rates.items()}


def gymnasium_subjects(config: Config, seconds: float) -> Subjects:
    """Gives the single environment and the vector environment of ids that Gymnasium knows; no policy acts in them."""
    cores = os.cpu_count() or 1
    if config.env.id.startswith("Crafter"):
        return {f"stock package on {cores} cores": lambda: rate(stock_crafter, config, seconds, cores)}
    if config.env.id not in gymnasium.registry and not config.env.id.startswith(ATARI):
        return {}
    return {
        "single env, no policy": lambda: rate(bare_loop, config, seconds),
        f"single env on {cores} cores": lambda: rate(bare_loop, config, seconds, cores),
        f"AsyncVectorEnv of {VECTOR}": lambda: rate(async_vector_env, config, seconds),
    }


def check_same(tuned: Config, other: Config) -> None:
    """Raises ConfigError unless both jobs are of one environment."""
    if tuned.env.id != other.env.id:
        raise ConfigError(f"the tuned job is for {tuned.env.id}", f"measure that, or tune a job for {other.env.id}")


def bench_collect(jobs: tuple[Config, Config, Config], seconds: float, repeat: int, home: Path, say: Say) -> Report:
    """Measures the default job, the tuned one, the limit of the third, and each installed peer's best setting."""
    default, tuned, bound = jobs
    check_same(tuned, bound)
    # One network for all, or the limit would be another's.
    default, bound = (job.model_copy(update={"network": tuned.network}) for job in (default, bound))
    cores, env_id = os.cpu_count() or 1, tuned.env.id
    beside = peers.beside([p for p in peers.installed(home) if env_id in p.steps], home, env_id, seconds, say)
    subjects = {
        DEFAULT: lambda: pipeline_rate(default, seconds).steps_s,
        TUNED: lambda: pipeline_rate(tuned, seconds).steps_s,
        **gymnasium_subjects(bound, seconds),
        f"simulator alone, {cores} cores": lambda: rate(step_alone, bound, seconds, cores),
        LIMIT: lambda: rate(step_and_infer, bound, seconds, cores),
    }
    if env_id == "CartPole-v1":
        subjects[PLAIN] = lambda: rate(numpy_cartpole, bound, seconds, cores)
    subjects |= beside.measures
    settings = {DEFAULT: settings_of(default), TUNED: settings_of(tuned), LIMIT: settings_of(bound)}
    rows = rows_of(interleave(subjects, repeat, say), settings, beside)
    return Report(f"{env_id}, collecting", TUNED, rows, notes=(describe("tuned", tuned), *beside.failed.values()))


def rows_of(
    found: Mapping[str, tuple[float, ...]], settings: Mapping[str, dict[str, object]], beside: peers.Beside
) -> tuple[Row, ...]:
    """Gives what was found with its settings, less the peers that failed."""
    known = {**settings, **beside.settings}
    return tuple(Row(name, rates, known.get(name, {})) for name, rates in found.items() if name not in beside.failed)


def settings_of(config: Config) -> dict[str, object]:
    """Gives what differs from Headrace's defaults."""
    return overlay_of(config, Config())


def describe(name: str, config: Config) -> str:
    """Says in words how a job is spread over processes."""
    env, inference = config.env, config.inference
    return (
        f"{name}: env-servers {env.servers}, groups {env.groups} of {env.envs} environments, "
        f"inference-servers {inference.servers}, unrolls of {config.rollout.unroll} steps, network {_network(config)}"
    )


def _network(config: Config) -> str:
    hidden = config.network.get("hidden")
    return f"{config.network['name']}" + (f" {hidden}" if hidden and config.network["name"] == "mlp" else "")
