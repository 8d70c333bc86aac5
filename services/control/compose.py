"""Turns a Config into a job: the processes with their addresses.

Knows which services there are and how they are called; starts nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Config, NetConfig
from common.errors import ConfigError
from services.learner_server.lock import lives

_DEFAULT_NET = NetConfig()
_SHARED = "/tmp"
_PRIVATE = "headrace-"
LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Process:
    """One service of a job. `argv` follows the interpreter; `announce` will hold its http address."""

    name: str
    role: str
    argv: tuple[str, ...]
    threads: int
    announce: Path
    log: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole job: `config` has the job's real addresses, `sockets` is the private directory that goes with it."""

    config: Config
    run_dir: Path
    sockets: Path
    processes: tuple[Process, ...]


def private_dir() -> Path:
    """Makes a directory only its owner can enter, with a path short enough for ipc sockets (about 100 bytes)."""
    return Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=_SHARED))


def private_dirs(where: Path = Path(_SHARED)) -> list[Path]:
    """Gives the private directories of this user's jobs, the newest first."""
    found = [(path.lstat(), path) for path in where.glob(f"{_PRIVATE}*")]
    own = [(about.st_mtime, path) for about, path in found if about.st_uid == os.getuid() and path.is_dir()]
    return [path for _, path in sorted(own, reverse=True)]


def local_plan(config: Config, run_dir: Path, sockets: Path) -> Plan:
    """Plans one process per service, over ipc sockets in `sockets` unless the config names addresses of its own."""
    placed = place(config, lambda name: f"ipc://{sockets}/{name}")
    _check(placed)
    path = sockets / "config.yaml"
    path.write_text(placed.to_yaml())
    processes = [
        _process(placed, role, name, index, port, path, run_dir, sockets)
        for port, (role, name, index) in enumerate(services(placed))
    ]
    return Plan(placed, run_dir, sockets, tuple(processes))


def _check(placed: Config) -> None:
    """Raises ConfigError for an address or a port that a service would refuse once the others have started."""
    from common.transport.socket import check_address  # zmq, which a job needs next but `--help` does not

    for address in (*placed.net.act, *placed.net.experience, placed.net.weights):
        check_address(address, placed.net)
    first, n = placed.metrics.port, len(services(placed))
    if first and first + n - 1 > LAST_PORT:
        text = f"metrics.port={first}: {n} processes take it and the ports that follow, up to {LAST_PORT}"
        raise ConfigError(text, f"set it to {LAST_PORT + 1 - n} or less, or to 0")


def earlier_lives(run_dir: Path) -> int:
    """Gives the number from which a run's processes count their lives, so that a resumed run draws new seeds."""
    return 100 * lives(run_dir)


def services(config: Config) -> list[tuple[str, str, int]]:
    """Gives (role, name, index) of each process of the job, those that take longest to start first."""
    return [
        ("learner", "learner", 0),
        *(("inference", f"inference-{i}", i) for i in range(config.inference.servers)),
        *(("env", f"env-{i}", i) for i in range(config.env.servers)),
        *(("replay", f"replay-{i}", i) for i in range(config.replay.servers)),
    ]


def place(config: Config, address: Any) -> Config:
    """Gives `config` with `address(name)` in place of each default address; those the user chose stay."""
    net, default = config.net, _DEFAULT_NET
    placed = net.model_copy(
        update={
            "act": _places("act", net.act, default.act, "inference", config.inference.servers, address),
            "experience": _places(
                "experience", net.experience, default.experience, "replay", config.replay.servers, address
            ),
            "weights": address("weights") if net.weights == default.weights else net.weights,
        }
    )
    return config.model_copy(update={"net": placed})


def _places(
    key: str, chosen: tuple[str, ...], default: tuple[str, ...], role: str, servers: int, address: Any
) -> tuple[str, ...]:
    if chosen == default:
        return tuple(address(f"{key}-{i}") for i in range(servers))
    if len(chosen) != servers:
        raise ConfigError(
            f"net.{key} names {len(chosen)} addresses for {role}.servers={servers}",
            f"give one address per {role}-server",
        )
    return chosen


def overlay_of(config: Config, base: Config) -> dict[str, Any]:
    """Gives what differs from `base`, as the overlay that would make `config` of it."""
    return _difference(config.model_dump(), base.model_dump())


def _difference(tree: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        other = base.get(key)
        if isinstance(value, Mapping) and value and isinstance(other, Mapping):
            inner = _difference(value, other)
            if inner:
                found[key] = inner
        elif key not in base or value != other:
            found[key] = value
    return found


def _process(
    config: Config, role: str, name: str, index: int, port: int, path: Path, run_dir: Path, sockets: Path
) -> Process:
    announce = sockets / f"{name}.url"
    argv = ["-m", f"services.{role}_server", "--config", str(path), "--index", str(index)]
    argv += ["--run-dir", str(run_dir), "--announce", str(announce), "--earlier-lives", str(earlier_lives(run_dir))]
    if config.metrics.port:
        # One fixed port cannot serve several processes of one machine: they take it and those that follow.
        argv.append(f"metrics.port={config.metrics.port + port}")
    threads = {"inference": config.inference.threads, "learner": config.learner.threads}.get(role, 1)
    return Process(name, role, tuple(argv), threads, announce, run_dir / "logs" / f"{name}.log")
