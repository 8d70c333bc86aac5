"""Other libraries beside Headrace: each a script in benchmarks/peers, run in a virtual environment of its own.

Knows where they are and how to read what they print; `python -m benchmarks.peers install` makes the environments.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common.config import CONFIGS
from common.errors import HeadraceError

SCRIPTS = CONFIGS.parent / "benchmarks" / "peers"
HOME = Path("~/.cache/headrace/peers")
TIMEOUT_S = 600.0


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


def installed(home: Path) -> list[Peer]:
    """Gives the peers that can run here."""
    return [p for p in PEERS if python_of(p, home).exists() and (SCRIPTS / f"{p.name}_peer.py").exists()]


def run(peer: Peer, home: Path, *arguments: str) -> dict[str, float]:
    """Gives the rate of each of a peer's settings, from the line of JSON that its script prints last."""
    with tempfile.TemporaryDirectory() as folder:  # some leave files where they run
        try:
            done = subprocess.run(
                [python_of(peer, home), SCRIPTS / f"{peer.name}_peer.py", *arguments],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
        except subprocess.TimeoutExpired:
            raise HeadraceError(f"{peer.name} {' '.join(arguments)} did not end within {TIMEOUT_S:g} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise HeadraceError(f"{peer.name} {' '.join(arguments)} failed", done.stderr[-600:])
    return {str(setting): float(value) for setting, value in json.loads(lines[-1]).items()}
