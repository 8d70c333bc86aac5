"""`headrace keys`: makes the files that common/transport/security.py reads."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

from common.errors import ConfigError
from common.transport.security import keypair, read_keys
from services.control.targets import writing


def make_keys(folder: Path) -> None:
    """Makes the server's keys and a first client's in a new `folder`; refuses to overwrite any."""
    if (folder / "server.key").exists():
        raise ConfigError(f"{folder} has keys already", "add a client with --client NAME, or choose another folder")
    public, secret = keypair()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "server.key", public, secret)
        _write(folder / "server.pub", public)
        _write(folder / "clients")
        _add(folder, folder, "client")


def add_client(folder: Path, name: str) -> Path:
    """Puts another client on the allow-list; gives the folder, `folder/name`, that its host needs and nothing more."""
    # It becomes a folder and the rest of a line.
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"--client {name!r} is no name", "use letters, digits, - and _, as in a host's name")
    read_keys(folder / "server.key", 2)
    mine = folder / name
    if mine.exists():
        raise ConfigError(f"{mine} exists already", "choose another client name")
    with _writing(folder):
        mine.mkdir()
        _write(mine / "server.pub", *read_keys(folder / "server.pub", 1))
        _add(folder, mine, name)
    return mine


def _writing(folder: Path) -> AbstractContextManager[None]:
    return writing(f"{folder} cannot hold keys", "name a folder, or a new one, in which you may write")


def _add(folder: Path, target: Path, name: str) -> None:
    public, secret = keypair()
    _write(target / "client.key", public, secret)
    with (folder / "clients").open("a") as file:
        file.write(f"{public.decode()} {name}\n")


def _write(path: Path, *keys: bytes) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(b"".join(key + b"\n" for key in keys))
