"""Makes the peers' virtual environments, and runs their scripts.

    python -m benchmarks.peers install [NAME ...]
    python -m benchmarks.peers run NAME WHAT [--seconds 5]

They lie under --home, ~/.cache/headrace/peers if none is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from common.errors import HeadraceError
from services.control.bench.peers import HOME, PEERS, SCRIPTS, Peer, marker_of, python_of, run

BUILD = ("setuptools", "wheel", "Cython", "numpy<2")


def install(peer: Peer, home: Path) -> None:
    """Makes one virtual environment, or brings it up to date; raises HeadraceError with pip's last words."""
    python, marker = python_of(peer, home), marker_of(peer, home)
    marker.unlink(missing_ok=True)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    wanted = (SCRIPTS / f"requirements-{peer.name}.txt").read_text().splitlines()
    # torch first and alone, so that no dependency chooses another build of it.
    for torch in (line for line in wanted if line.startswith("torch==")):
        _pip(python, torch)
    if peer.name != "pufferlib":
        _pip(python, *wanted)
    else:
        _pip(python, *BUILD)
        folders = os.environ["PATH"].split(os.pathsep)
        without_cuda = os.pathsep.join(folder for folder in folders if not Path(folder, "nvcc").exists())
        environ = {"PATH": without_cuda, "PYTHONPATH": str(SCRIPTS / "pufferlib_build")}
        _pip(python, "--no-build-isolation", *wanted, environ=environ)
    marker.touch()


def _pip(python: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environ or {})})
    if done.returncode:
        raise HeadraceError(f"pip install {' '.join(arguments)} failed", "\n".join(done.stderr.splitlines()[-8:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=HOME)
    commands = parser.add_subparsers(dest="command", required=True)
    names = [peer.name for peer in PEERS]
    to_install = commands.add_parser("install")
    to_install.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all if none is given")
    to_run = commands.add_parser("run")
    to_run.add_argument("name", choices=names)
    to_run.add_argument("what", help="an environment's id, or replay")
    to_run.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    chosen = {peer.name: peer for peer in PEERS}
    if arguments.command == "run":
        print(json.dumps(run(chosen[arguments.name], arguments.home, arguments.what, str(arguments.seconds)), indent=1))
        return
    failed = 0
    for name in arguments.names or names:
        try:
            install(chosen[name], arguments.home)
            print(f"{name}: installed", flush=True)
        except HeadraceError as error:
            failed += 1
            print(f"{name}: {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
