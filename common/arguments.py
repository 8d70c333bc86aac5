"""The command line of a service, `python -m services.<role>_server`: its options, and the config that they name."""

from __future__ import annotations

import argparse
import os
import random
import socket
from collections.abc import Sequence
from pathlib import Path

from common.config import MAX_ENVS, load
from common.errors import ConfigError


def service_arguments(role: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses `argv`: gives the options, `config` loaded, and the `name` of a server without --index; or ConfigError."""
    parser = argparse.ArgumentParser(
        prog=f"headrace {role}-server",
        description=f"Runs one {role}-server by hand. Start the four roles in any order: each waits for the others.",
        epilog=f"example: headrace {role}-server --config configs/cartpole_ppo.yaml learner.lr=3e-4",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="YAML overlay on configs/defaults.yaml")
    parser.add_argument("--index", type=int, help="number among its role's servers; an env-server draws one without")
    parser.add_argument("--restarts", type=int, default=0, help="times this process was restarted; new seeds each time")
    parser.add_argument("--earlier-lives", type=int, default=0, help="its lives in the run before that was resumed")
    parser.add_argument("--run-dir", type=Path, help="where a learner keeps its run, and a replay-server its rings")
    parser.add_argument("--announce", type=Path, help="file to write this service's http address to")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, like learner.lr=3e-4")
    a = parser.parse_args(argv)
    a.config = load(a.config, a.overrides)
    last = max(1, MAX_ENVS // (a.config.env.groups * a.config.env.envs))
    for option in ("index", "restarts", "earlier_lives"):
        if not 0 <= (n := getattr(a, option) or 0) < last:
            raise ConfigError(f"--{option.replace('_', '-')} {n} is out of range", f"set it between 0 and {last - 1}")
    # Two started by hand must not share a name, nor env-servers environment ids and seeds; other roles are one each.
    a.name = f"{role}-{socket.gethostname()}-{os.getpid()}" if a.index is None and role in ("env", "inference") else ""
    alone = role == "env" and a.index is None
    a.index = random.SystemRandom().randrange(min(1 << 20, last // 2), min(1 << 30, last)) if alone else a.index or 0
    key = {"inference": "act", "replay": "experience"}.get(role, "")
    if 1 < (n := len(getattr(a.config.net, key, ()))) <= a.index:
        raise ConfigError(f"--index {a.index}: net.{key} has {n} addresses, counted from 0", f"set it below {n}")
    return a
