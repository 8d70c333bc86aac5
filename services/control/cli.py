"""The command line: what `headrace …` understands. Reads argv and the environment, and leaves the work to others.

Command modules are imported inside the command functions, and nothing heavy (torch, matplotlib, gymnasium) ever at the
top: the time from Enter to the first step of a job is part of what a user waits for.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import ConfigError
from services.control.bench.commands import app as bench
from services.control.entry import answered
from services.control.extras import require

app = typer.Typer(
    name="headrace",
    help="Headrace trains deep-RL agents with a pipeline of small services.",
    epilog="Start with:  headrace train configs/cartpole_ppo.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench, name="bench")

RAW = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class EngineName(StrEnum):
    """Where the services of a job run."""

    local = "local"
    inline = "inline"


def _complete_run(incomplete: str) -> list[str]:
    return [str(path.parent) for path in Path("runs").glob("*/config.yaml") if str(path).startswith(incomplete)]


def _complete_algorithm(incomplete: str) -> list[str]:
    from services.control.presets import algorithms

    return [name for name in algorithms() if name.startswith(incomplete)]


Run = Annotated[Path, typer.Argument(help="a run's directory", autocompletion=_complete_run)]
Resume = Annotated[
    Path | None, typer.Option(help="go on with this run's directory", autocompletion=_complete_run, metavar="RUN")
]
Algo = Annotated[
    str | None,
    typer.Option(help="use this algorithm's preset instead of a config file", autocompletion=_complete_algorithm),
]
Env = Annotated[str | None, typer.Option(help="environment id for the preset, e.g. CartPole-v1")]
What = Annotated[
    list[str] | None, typer.Argument(help="a config file, then settings like learner.lr=3e-4", metavar="[CONFIG] [k=v]")
]


@app.command(
    epilog="Settings come from configs/defaults.yaml, CONFIG, HEADRACE_… variables (HEADRACE_LEARNER__LR=3e-4) and "
    "key=value, the last one wins. docs/configuration.md lists every key.",
)
def train(
    what: What = None,
    algo: Algo = None,
    env: Env = None,
    engine: Annotated[EngineName, typer.Option(help="a process per service, or all in one")] = EngineName.local,
    resume: Resume = None,
) -> None:
    """Trains an agent: starts the four services, shows their progress, and ends when the goal is reached.

    Ctrl-C once finishes the update, writes a checkpoint and says how to resume. Twice stops at once.

    [bold]Examples[/]

      headrace train configs/cartpole_ppo.yaml

      headrace train configs/cartpole_ppo.yaml learner.lr=3e-4 env.servers=2

      headrace train --algo ppo --env Pendulum-v1 stop.steps=200000

      headrace train --resume runs/ppo-CartPole-v1-0102-150405

      headrace train configs/cartpole_ppo.yaml --engine inline
    """
    from services.control.run_dir import RunDir, new_run
    from services.control.train import train_inline, train_local

    # The display and what the services need: they would crash five times each before they could say so.
    require("torch", "safetensors", "tensorboard", "rich")
    config_file, overrides = _split(what or [])
    if resume is not None:
        if algo or env:
            given = f"--algo {algo}" if algo else f"--env {env}"
            raise ConfigError(f"{given} was given with --resume", "leave it out: a run has its own config.yaml")
        config = _resumed(resume, config_file, overrides)
        run = RunDir(resume, config)
    else:
        config = _preset(algo, env, config_file, overrides) if algo or env else _load(config_file, overrides)
        run = new_run(config)
    # The services read the composed config alone: variables that made it must not be laid over it a second time.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    with run:
        code = train_inline(config, run) if engine is EngineName.inline else train_local(config, run, environ)
    raise typer.Exit(code)


@app.command()
def top(
    targets: Annotated[
        list[str] | None,
        typer.Option(help="addresses of services' metrics, or names of hosts that have them on port 9400"),
    ] = None,
) -> None:
    """Watches a job that already runs, here, in containers or on other hosts, from its services' own metrics.

    Without --targets it finds the newest job of yours on this machine. Ctrl-C ends the watching, not the job.

    [bold]Examples[/]

      headrace top

      headrace top --targets http://127.0.0.1:9100,http://127.0.0.1:9101

      headrace top --targets env-server,inference-server,replay-server,learner-server
    """
    from services.control.top import top as watch_job

    names = [name.strip() for item in targets or [] for name in item.split(",") if name.strip()]
    if targets and not names:
        raise ConfigError(f"--targets {','.join(targets)!r} names no host", "write http://host:port")
    raise typer.Exit(watch_job(names))


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="the folder of keys; give it to services as net.keys")],
    client: Annotated[str | None, typer.Option(help="add this client to the allow-list of the folder")] = None,
) -> None:
    """Makes the keys with which tcp between hosts is encrypted, and the list of clients that servers let in.

    [bold]Examples[/]

      headrace keys keys

      headrace keys keys --client host-b
    """
    from services.control.keys import add_client, make_keys

    if client is None:
        make_keys(folder)
        typer.echo(f"made {folder}: server.key and clients for servers, server.pub and client.key for clients")
    else:
        typer.echo(f"added {client}: copy {add_client(folder, client)} to its host and set net.keys to the copy")


@app.command()
def evaluate(
    run: Run,
    episodes: Annotated[int, typer.Option(min=1, help="fresh episodes")] = 100,
    video: Annotated[bool, typer.Option("--video", help="write RUN/video.mp4 of one episode")] = False,
    seed: Annotated[int, typer.Option(min=0, help="seed of the environments; training used others")] = 1_000_003,
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a checkpoint's name")] = "latest",
) -> None:
    """Plays fresh episodes with a run's policy, greedily, and reports the return's mean ± std.

    [bold]Examples[/]

      headrace evaluate runs/ppo-CartPole-v1-0102-150405

      headrace evaluate runs/ppo-CartPole-v1-0102-150405 --episodes 20 --video --checkpoint best
    """
    # pygame looks for a screen even where it only draws into an array, and complains of a machine that has none.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    from services.control.evaluate import evaluate_run

    evaluate_run(run, episodes=episodes, video=video, seed=seed, checkpoint=checkpoint)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="run directories", autocompletion=_complete_run)],
    out: Annotated[
        Path | None, typer.Option(help="the PNG to write; RUN/curve.png, comparison.png for several")
    ] = None,
) -> None:
    """Draws the learning curve of one run, or compares several, as a PNG.

    [bold]Examples[/]

      headrace plot runs/ppo-CartPole-v1-0102-150405

      headrace plot runs/ppo-* --out ppo.png
    """
    from services.control.plot import plot_runs

    typer.echo(f"wrote {plot_runs(runs, out)}")


@app.command()
def check(
    env_id: Annotated[str, typer.Argument(help="a Gymnasium id, module:Id, or package.module:factory")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="settings like env.kwargs={...}", metavar="[k=v]")
    ] = None,
) -> None:
    """Says whether an environment will run here, before anything is started: its spec, its checks, its speed.

    [bold]Examples[/]

      headrace check CartPole-v1

      headrace check my_package.envs:make_maze 'env.kwargs={size: 9}'
    """
    from services.control.check import check_env

    check_env(env_id, settings or [])


@app.command()
def tune(
    what: What = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="time budget; it may need less")] = 5.0,
    output: Annotated[
        Path | None, typer.Option(help="the overlay to write; CONFIG's name with .tuned.yaml, here", metavar="FILE")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.2, max=10.0, help="of each measurement")] = 1.0,
) -> None:
    """Finds the sizes that collect fastest on this machine: environments, servers of both kinds, groups and unrolls.

    It measures short runs of the job without its learner, says which role is
    the bottleneck, and writes the job with its new sizes. A synchronous job
    keeps its steps per batch. Ctrl-C writes the best so far.

    [bold]Examples[/]

      headrace tune configs/cartpole_ppo_async.yaml

      headrace tune configs/pendulum_ppo.yaml --minutes 2 --output pendulum.yaml && headrace train pendulum.yaml
    """
    from services.control.tune.command import tune_job

    config_file, overrides = _split(what or [])
    stem = config_file.stem if config_file is not None else "headrace"
    tune_job(_load(config_file, overrides), output or Path(f"{stem}.tuned.yaml"), minutes, seconds)


@app.command()
def algorithms() -> None:
    """Lists the algorithms, one line each; use a name with `headrace train --algo NAME`."""
    from common.rl.registry import ALGORITHMS

    for name, (_, line) in ALGORITHMS.items():
        typer.echo(f"{name:<12} {line}")


def _service(role: str, argv: list[str]) -> None:
    from importlib import import_module

    from common.service import main as serve

    raise typer.Exit(serve(role, import_module(f"services.{role}_server.server").run, argv))


@app.command("env-server", context_settings=RAW)
def env_server(context: typer.Context) -> None:
    """Runs one env-server by hand, e.g. `headrace env-server --config configs/cartpole_ppo.yaml`."""
    _service("env", context.args)


@app.command("inference-server", context_settings=RAW)
def inference_server(context: typer.Context) -> None:
    """Runs one inference-server by hand, e.g. `headrace inference-server --config configs/cartpole_ppo.yaml`."""
    _service("inference", context.args)


@app.command("replay-server", context_settings=RAW)
def replay_server(context: typer.Context) -> None:
    """Runs the replay-server by hand, e.g. `headrace replay-server --config configs/cartpole_ppo.yaml`."""
    _service("replay", context.args)


@app.command("learner-server", context_settings=RAW)
def learner_server(context: typer.Context) -> None:
    """Runs the learner by hand, e.g. `headrace learner-server --config configs/cartpole_ppo.yaml --run-dir runs/x`."""
    _service("learner", context.args)


def _split(what: list[str]) -> tuple[Path | None, list[str]]:
    """Parts a config file from the key=value settings after it."""
    files = [item for item in what if "=" not in item]
    if len(files) > 1:
        raise ConfigError(
            f"{files[1]!r} is neither the config file nor key=value", "write settings like learner.lr=3e-4"
        )
    return (Path(files[0]) if files else None), [item for item in what if "=" in item]


def _load(config_file: Path | None, overrides: list[str]) -> Any:
    from common.config import load

    return load(config_file, overrides)


def _preset(algo: str | None, env: str | None, config_file: Path | None, overrides: list[str]) -> Any:
    from services.control.presets import from_preset

    if config_file is not None:
        raise ConfigError(f"{config_file} was given with --algo or --env", "give a config file or a preset, not both")
    config, overlay = from_preset(algo or "ppo", env or "CartPole-v1", overrides)
    typer.echo(f"# this job as an overlay on configs/defaults.yaml:\n{overlay}")
    return config


def _resumed(run: Path, config_file: Path | None, overrides: list[str]) -> Any:
    if config_file is not None:
        raise ConfigError(f"{config_file} was given with --resume", "a run goes on with its own config.yaml")
    if not (run / "config.yaml").exists():
        raise ConfigError(f"--resume {run}: there is no config.yaml", "name a run's directory, such as runs/…")
    config = _load(run / "config.yaml", overrides)
    rings = [name for name, table in config.replay.tables.items() if table.kind != "fifo"]
    if rings and not config.replay.checkpoint_s:
        typer.echo(f"{', '.join(rings)} starts empty: with replay.checkpoint_s=0 a run keeps no ring", err=True)
    return config


def main() -> None:
    """Runs the command line for those who have it loaded; `headrace` begins in entry.py."""
    answered(app)


if __name__ == "__main__":
    main()
