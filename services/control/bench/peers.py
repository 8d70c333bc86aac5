"""Other libraries beside Headrace: each a script in benchmarks/peers, run in a virtual environment of its own.

Knows where they are and how to read what they print; `python -m benchmarks.peers install` makes the environments.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from common.config import CONFIGS
from common.errors import HeadraceError

SCRIPTS = CONFIGS.parent / "benchmarks" / "peers"
HOME = Path("~/.cache/headrace/peers")
TIMEOUT_S = 600.0
SWEEP_SHARE = 0.25  # of a repetition's seconds, for each setting while the best one is looked for


@dataclass(frozen=True, slots=True)
class Peer:
    """One library: the file of its script, what it is called in tables, and the environments it trains or steps."""

    name: str
    title: str
    trains: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


PEERS = (
    Peer("sb3", "Stable-Baselines3 PPO", trains=("CartPole-v1", "HalfCheetah-v5")),
    Peer("sample_factory", "Sample Factory APPO", trains=("CartPole-v1", "HalfCheetah-v5", "ALE/Pong-v5")),
    Peer("pufferlib", "PufferLib PPO", trains=("CartPole-v1",)),
    Peer("envpool", "EnvPool, two threads, no policy", steps=("CartPole-v1", "HalfCheetah-v5", "ALE/Pong-v5")),
    Peer("cpprb", "cpprb"),
    Peer("torchrl", "torchrl"),
)


def python_of(peer: Peer, home: Path) -> Path:
    """Gives the interpreter of a peer's virtual environment, which may not be there."""
    return home.expanduser() / peer.name / "bin" / "python"


def marker_of(peer: Peer, home: Path) -> Path:
    """Gives the file that stands in a peer's virtual environment once all that it needs is there."""
    return home.expanduser() / peer.name / "installed"


def ready(peer: Peer, home: Path) -> bool:
    """Says whether a peer can run here."""
    return marker_of(peer, home).exists()


def installed(home: Path) -> list[Peer]:
    """Gives the peers that can run here and train or step."""
    return [p for p in PEERS if ready(p, home) and (SCRIPTS / f"{p.name}_peer.py").exists()]


def run(peer: Peer, home: Path, *arguments: str) -> dict[str, float]:
    """Gives the rate of each of a peer's settings, from the line of JSON that its script prints last."""
    with tempfile.TemporaryDirectory() as folder:  # some leave files where they run
        script = subprocess.Popen(
            [python_of(peer, home), SCRIPTS / f"{peer.name}_peer.py", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        with script:
            try:
                said, errors = script.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise HeadraceError(f"{peer.name} {' '.join(arguments)} did not end within {TIMEOUT_S:g} s") from None
            finally:
                if script.poll() is None:
                    end_family(script.pid)
    lines = said.strip().splitlines()
    if script.returncode or not lines:
        raise HeadraceError(f"{peer.name} {' '.join(arguments)} failed", errors[-600:])
    return {str(setting): float(value) for setting, value in json.loads(lines[-1]).items()}


def end_family(pid: int) -> None:
    """Ends a script that still runs and all that it started: what is left of it would slow what is measured next."""
    with suppress(psutil.NoSuchProcess):
        script = psutil.Process(pid)
        for process in (script, *script.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(slots=True)
class Beside:
    """The peers of one table at their best settings: what measures each, what the sweep found, and whose run failed."""

    measures: dict[str, Callable[[], float]] = field(default_factory=dict)
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def once(self, name: str, measure: Callable[[], float]) -> float:
        """Gives a rate; 0, and none from then on, once a run has failed: what else is measured goes on."""
        if name in self.failed:
            return 0.0
        try:
            return measure()
        except HeadraceError as error:
            self.failed[name] = f"{name} is missing: {error}"
            return 0.0


def beside(which: Iterable[Peer], home: Path, env_id: str, seconds: float, say: Callable[[str], object]) -> Beside:
    """Runs each setting of each peer for a short while; gives the best ones, to be measured in turn with others."""
    found = Beside()
    for peer in which:
        say(f"{peer.title}: each setting")
        try:
            each = run(peer, home, env_id, str(SWEEP_SHARE * seconds))
        except HeadraceError as error:
            found.failed[peer.title] = f"{peer.title} is missing: {error}"
            continue
        best = max(each, key=lambda setting: each[setting])
        name = f"{peer.title}, {best}"
        found.settings[name] = {"each setting": each}
        found.measures[name] = partial(found.once, name, partial(_rate, peer, home, env_id, seconds, best))
    return found


def _rate(peer: Peer, home: Path, env_id: str, seconds: float, setting: str) -> float:
    return run(peer, home, env_id, str(seconds), setting)[setting]
