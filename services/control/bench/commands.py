"""The command line of `headrace bench`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.config import CONFIGS, load
from common.errors import ConfigError
from services.control.bench.peers import HOME
from services.control.targets import check_target

if TYPE_CHECKING:
    from services.control.bench.report import Report

app = typer.Typer(
    help="Measures steps per second, messages and replay on this machine, beside its limit.", no_args_is_help=True
)

EnvId = Annotated[str, typer.Argument(help="environment id")]
Settings = Annotated[list[str] | None, typer.Argument(help="settings like env.groups=3", metavar="[k=v]")]
Tuned = Annotated[
    Path | None, typer.Option(help="the overlay of the tuned row, as `headrace tune` writes it", metavar="FILE")
]
Seconds = Annotated[float, typer.Option(min=0.2, help="seconds of each measurement")]
Repeat = Annotated[int, typer.Option(min=1, help="repetitions; the subjects take turns")]


def _target(path: Path | None) -> Path | None:
    if path is not None:
        check_target("--json", path)
    return path


Json = Annotated[
    Path | None,
    typer.Option("--json", help="write every repetition to this file", metavar="FILE", callback=_target),
]
Home = Annotated[Path, typer.Option("--peers", help="where the peers' virtual environments are")]

Profile = Annotated[bool, typer.Option("--profile", help="also say where the time goes (needs py-spy)")]


@app.command()
def collect(
    env: EnvId = "CartPole-v1",
    settings: Settings = None,
    tuned: Tuned = None,
    seconds: Seconds = 5.0,
    repeat: Repeat = 5,
    profile: Profile = False,
    json: Json = None,
    home: Home = HOME,
) -> None:
    """Collecting: env-, inference- and replay-servers as processes with the policy in the loop, and no learner.

    Unrolls are assembled and inserted into a FIFO table that discards them. The
    limit steps and infers in one process per core, without messages. Reset steps
    that are no decisions are not counted. Other libraries stand beside it where
    `python -m benchmarks.peers install` has put them.

    [bold]Examples[/]

      headrace bench collect

      headrace bench collect HalfCheetah-v5 --tuned cheetah.yaml --json cheetah.json
    """
    from services.control.bench.collect import bench_collect
    from services.control.bench.jobs import collect_job

    default, best, bound = collect_job(env, tuple(settings or []))
    if tuned is not None:
        best = load(tuned, settings or [])
    _show(bench_collect((default, best, bound), seconds, repeat, home, _say), json)
    if profile:
        from services.control.bench.profile import profile_collect

        typer.echo(profile_collect(best, seconds))


@app.command()
def train(
    env: EnvId = "CartPole-v1",
    settings: Settings = None,
    tuned: Tuned = None,
    seconds: Seconds = 10.0,
    repeat: Repeat = 5,
    profile: Profile = False,
    json: Json = None,
    home: Home = HOME,
) -> None:
    """Training: the same with the learner, PPO of one epoch, steps counted when they are trained on.

    Other libraries stand beside it where `python -m benchmarks.peers install` has put them.

    [bold]Examples[/]

      headrace bench train

      headrace bench train HalfCheetah-v5 --repeat 3 --json cheetah.json
    """
    from services.control.bench.jobs import train_job
    from services.control.bench.train import bench_train

    default, best = train_job(env, tuple(settings or []))
    if tuned is not None:
        best = load(tuned, settings or [])
    _show(bench_train((default, best), seconds, repeat, home, _say), json)
    if profile:
        from services.control.bench.profile import profile_train

        typer.echo(profile_train(best, seconds))


@app.command()
def wire(repeat: Repeat = 5, json: Json = None) -> None:
    """Messages: round trips and throughput of our Client and Server beside bare pyzmq; so many of each, not seconds."""
    _clone("wire", "--repeat", str(repeat), json=json)


@app.command()
def replay(seconds: Seconds = 1.0, repeat: Repeat = 5, json: Json = None) -> None:
    """Replay: draws and inserts of the tables beside other buffers, and through the service."""
    _clone("replay", "--seconds", str(seconds), "--repeat", str(repeat), json=json)


def _clone(name: str, *arguments: str, json: Path | None) -> None:
    """Runs what only a clone has, since it needs what the services may not import."""
    root = CONFIGS.parent
    if not (root / "benchmarks" / f"{name}.py").exists():
        raise ConfigError(f"headrace bench {name}: {root} has no benchmarks/{name}.py", "run it in a clone of Headrace")
    where = ("--json", str(json.absolute())) if json is not None else ()
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments, *where], cwd=root)
    raise typer.Exit(done.returncode)


def _show(report: Report, path: Path | None) -> None:
    from rich.console import Console

    console = Console()
    console.print(report.table())
    for note in report.notes:
        console.print(note, style="dim", soft_wrap=True, highlight=False)
    if path is not None:
        report.write(path)
        typer.echo(f"wrote {path}")


def _say(text: str) -> None:
    typer.echo(typer.style(text, dim=True), err=True)
