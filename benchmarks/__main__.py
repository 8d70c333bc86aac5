"""`make bench`: runs every benchmark and writes its tables and plots into docs/benchmarks.md and docs/scaling.md.

    python -m benchmarks [--only SECTION ...] [--repeat 5] [--seconds 8]

Every repetition is kept as JSON under runs/bench. Sections are written one by one, so that a run that is cut short
keeps what it has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

from benchmarks import connections, draws, plots, replay, scaling, solve, wire
from benchmarks.page import write_sections
from services.control.bench.collect import bench_collect
from services.control.bench.jobs import collect_job, train_job
from services.control.bench.peers import HOME, PEERS, installed
from services.control.bench.profile import profile_collect, profile_train
from services.control.bench.report import Report, machine
from services.control.bench.train import bench_train, peer_row

ROOT = Path(__file__).resolve().parent.parent
PAGE, PLOTS, RUNS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "plots", ROOT / "runs" / "bench"
COLLECTED = ("CartPole-v1", "HalfCheetah-v5", "ALE/Pong-v5", "CrafterReward-v1", "LunarLander-v3")
# What --seconds is multiplied by: sixty-four games take seconds to reset, and then acting runs ahead for some more.
TRAINED = {"CartPole-v1": 1, "HalfCheetah-v5": 1, "ALE/Pong-v5": 4}
EXTRA_S = 1.0


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def collect(env_id: str, seconds: float, repeat: int) -> str:
    """Measures collecting of one environment, the peers that step it, and where the time goes."""
    jobs = collect_job(env_id)
    report = bench_collect(jobs, seconds, repeat, say)
    peers = [peer for peer in installed(HOME) if env_id in peer.steps]
    rows = [peer_row(peer, env_id, seconds, repeat, HOME, say) for peer in peers]
    report = Report(report.title, report.ours, (*report.rows, *rows), report.unit, report.notes)
    report.write(_kept("collect", env_id))
    return f"{report.markdown()}\n\n{profile_collect(jobs[1], seconds)}"


def train(env_id: str, seconds: float, repeat: int) -> str:
    report = bench_train(train_job(env_id), seconds, repeat, HOME, say)
    report.write(_kept("train", env_id))
    return report.markdown()


def profile(env_id: str, seconds: float) -> str:
    return profile_train(train_job(env_id)[1], seconds)


def _kept(kind: str, env_id: str) -> Path:
    RUNS.mkdir(parents=True, exist_ok=True)
    return RUNS / f"{kind}-{env_id.replace('/', '-')}.json"


def _about() -> str:
    lines = [f"Measured on {date.today():%-d %B %Y} on {machine()}."]
    here = {peer.name for peer in installed(HOME)}
    if missing := [peer.title for peer in PEERS if peer.name not in here]:
        lines.append(f"Not installed on it, and so missing from the tables: {', '.join(missing)}.")
    return " ".join(lines)


def _wire(repeat: int) -> str:
    found = wire.measure(repeat)
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / "wire.json").write_text(json.dumps(found, indent=1))
    return wire.report(found)


def sections(seconds: float, repeat: int) -> dict[str, Callable[[], str]]:
    """Gives each section of the page with what measures it."""
    found: dict[str, Callable[[], str]] = {"machine": _about}
    found |= {f"collect {env_id}": partial(collect, env_id, seconds, repeat) for env_id in COLLECTED}
    found |= {f"train {env_id}": partial(train, env_id, times * seconds, repeat) for env_id, times in TRAINED.items()}
    found |= {f"profile {env_id}": partial(profile, env_id, 2 * seconds) for env_id in TRAINED}
    found["solve"] = lambda: solve.report(repeat, solve.peer_python())
    found["connections"] = lambda: connections.report(connections.measure(seconds, repeat))
    found["wire"] = lambda: _wire(repeat)
    found["replay"] = lambda: replay.report(repeat, EXTRA_S, RUNS / "replay.json")
    found["draws"] = lambda: draws.markdown(draws.measure(10_000_000, 100_000))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="sections whose names begin so")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()

    def chosen(name: str) -> bool:
        return not arguments.only or any(name.startswith(only) for only in arguments.only)

    for name, measure in sections(arguments.seconds, arguments.repeat).items():
        if chosen(name):
            print(f"{name} …", flush=True)
            text = measure()
            print(text, flush=True)
            write_sections(PAGE, {name: text})
    for kind, what, measured in (("collect", "Collecting", COLLECTED), ("train", "Training", TRAINED)):
        if plots.draw_files([_kept(kind, env_id) for env_id in measured], PLOTS / f"{kind}.png"):
            picture = f"![{what}: steps/s of each subject, on a log scale](plots/{kind}.png)"
            write_sections(PAGE, {f"{kind} plot": picture})
    if chosen("scaling"):
        write_sections(scaling.PAGE, scaling.report(arguments.seconds / 2, arguments.repeat))


if __name__ == "__main__":
    main()
