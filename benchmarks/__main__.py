"""`make bench`: runs the benchmarks and writes their tables and plots into docs/benchmarks.md and docs/scaling.md.

    python -m benchmarks [--only SECTION ...] [--repeat 5] [--seconds 8]

Every repetition is kept as JSON under runs/bench. Sections are written one by one, so that a run that is cut short
keeps what it has, and one that fails leaves the others; each says when, where and how often it was measured, and which
peers were not there.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import ablation, connections, draws, memory, plots, replay, scaling, solve, updates, wire
from benchmarks.page import read_section, repetitions, stamped, write_json, write_sections
from common.errors import HeadraceError
from services.control.bench.collect import bench_collect
from services.control.bench.jobs import collect_job, train_job
from services.control.bench.peers import HOME, PEERS, Peer, ready
from services.control.bench.profile import profile_collect, profile_train
from services.control.bench.train import bench_train

ROOT = Path(__file__).resolve().parent.parent
PAGE, PLOTS, RUNS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "plots", ROOT / "runs" / "bench"
COLLECTED = ("CartPole-v1", "HalfCheetah-v5", "ALE/Pong-v5", "CrafterReward-v1", "LunarLander-v3")
# What --seconds is multiplied by: sixty-four games take seconds to reset, and then acting runs ahead for some more.
TRAINED = {"CartPole-v1": 1, "HalfCheetah-v5": 1, "ALE/Pong-v5": 4}
REPLAY_S, UPDATES_S, ABLATION_S, MEMORY_STEPS = 1.0, 5.0, 3.0, 100_000_000


@dataclass(frozen=True, slots=True)
class Section:
    """What measures a section of the page, how often or long, and the peers that stand in it where they are here."""

    measure: Callable[[], str]
    how: str
    peers: tuple[Peer, ...] = ()

    def text(self) -> str:
        """Measures; gives the section as it is written."""
        missing = [peer.title for peer in self.peers if not ready(peer, HOME)]
        text = stamped(self.measure(), self.how)
        return f"{text} Not installed there, and so missing: {', '.join(missing)}." if missing else text


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def collect(env_id: str, seconds: float, repeat: int) -> str:
    """Measures collecting of one environment, and where the time goes."""
    jobs = collect_job(env_id)
    report = bench_collect(jobs, seconds, repeat, HOME, say)
    report.write(_kept(f"collect-{env_id}"))
    return f"{report.markdown()}\n\n{_profiled(lambda: profile_collect(jobs[1], seconds))}"


def train(env_id: str, seconds: float, repeat: int) -> str:
    report = bench_train(train_job(env_id), seconds, repeat, HOME, say)
    report.write(_kept(f"train-{env_id}"))
    return report.markdown()


def profile(env_id: str, seconds: float) -> str:
    return _profiled(lambda: profile_train(train_job(env_id)[1], seconds))


def _profiled(measure: Callable[[], str]) -> str:
    """Gives a profile, or why there is none: what was measured before stands without it."""
    try:
        return measure()
    except HeadraceError as error:
        return f"Not profiled: {error}."


def _kept(name: str) -> Path:
    RUNS.mkdir(parents=True, exist_ok=True)
    return RUNS / f"{name.replace('/', '-')}.json"


def _wire(repeat: int) -> str:
    found = wire.measure(repeat)
    write_json(_kept("wire"), found)
    return wire.report(found)


def _replay(repeat: int) -> str:
    rounds = replay.measure(repeat, REPLAY_S)
    write_json(_kept("replay"), {"rounds": rounds})
    return replay.report(rounds)


def sections(seconds: float, repeat: int) -> dict[str, Section]:
    """Gives each section of the page that is measured here."""
    found: dict[str, Section] = {}
    for env_id in COLLECTED:
        peers = tuple(peer for peer in PEERS if env_id in peer.steps)
        measure = partial(collect, env_id, seconds, repeat)
        found[f"collect {env_id}"] = Section(measure, repetitions(repeat, seconds), peers)
    for env_id, times in TRAINED.items():
        peers, long = tuple(peer for peer in PEERS if env_id in peer.trains), times * seconds
        measure = partial(train, env_id, long, repeat)
        found[f"train {env_id}"] = Section(measure, repetitions(repeat, long), peers)
    for env_id in TRAINED:
        found[f"profile {env_id}"] = Section(partial(profile, env_id, 2 * seconds), repetitions(1, 2 * seconds))
    buffers = tuple(peer for peer in PEERS if peer.name in replay.SCRIPTS)
    return found | {
        "ablation": Section(partial(ablation.report, ABLATION_S, repeat), repetitions(repeat, ABLATION_S)),
        "solve": Section(lambda: solve.report(repeat, solve.peer_python()), f"{repeat} seeds"),
        "connections": Section(
            lambda: connections.report(connections.measure(seconds, repeat)), repetitions(repeat, seconds)
        ),
        "wire": Section(partial(_wire, repeat), repetitions(repeat)),
        "replay": Section(partial(_replay, repeat), repetitions(repeat, REPLAY_S), buffers),
        "updates": Section(partial(updates.report, repeat, UPDATES_S), repetitions(repeat, UPDATES_S)),
        "draws": Section(lambda: draws.markdown(draws.measure(10_000_000, 100_000)), "one run"),
        "memory": Section(partial(memory.report, MEMORY_STEPS), "one run"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="sections whose names begin so")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()

    def chosen(name: str) -> bool:
        return not arguments.only or any(name.startswith(only) for only in arguments.only)

    found = sections(arguments.seconds, arguments.repeat)
    work: dict[str, Callable[[], None]] = {name: partial(write, name, section) for name, section in found.items()}
    work["scaling"] = partial(write_scaling, arguments.seconds / 2, arguments.repeat)
    for only in arguments.only or ():
        if not any(name.startswith(only) for name in work):
            parser.error(f"--only {only}: the sections are {', '.join(work)}")
    connections.make_room()
    failed = [name for name, measure in work.items() if chosen(name) and not succeeds(name, measure)]
    for kind, measured in (("collect", COLLECTED), ("train", TRAINED)):
        shown = [f"{kind} {env_id}" for env_id in measured]
        if any(map(chosen, shown)):
            page = PAGE.read_text()
            plots.draw_rates([plots.read_table(read_section(page, name)) for name in shown], PLOTS / f"{kind}.png")
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def write(name: str, section: Section) -> None:
    """Measures a section and writes it into the page."""
    text = section.text()
    print(text, flush=True)
    write_sections(PAGE, {name: text})


def write_scaling(seconds: float, repeat: int) -> None:
    write_sections(scaling.PAGE, scaling.report(seconds, repeat))


def succeeds(name: str, measure: Callable[[], None]) -> bool:
    """Runs what measures a section; False, with the reason said, where it fails: hours of others are to come."""
    print(f"{name} …", flush=True)
    try:
        measure()
    except Exception as error:
        if not isinstance(error, HeadraceError):
            traceback.print_exc()
        print(f"not measured, and left as it is: {error}", flush=True)
        return False
    return True


if __name__ == "__main__":
    main()
