"""The errors users and peers see: each has a code for machines, a message, and a remedy for people.

Knows nothing of sockets or of what failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What a mistake in a user's own code raises, in the next life again. Others may pass, and cost a restart.
MISTAKES = (TypeError, ValueError, LookupError, AssertionError, AttributeError, NameError, SyntaxError)


def nearest(name: str, known: Iterable[str]) -> str:
    """Gives the remedy for a name that is not known: the nearest one that is, else all of them."""
    names = list(known)
    leaf = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, 1) or [n for n in names if n.rpartition(".")[2] == leaf]
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"


class HeadraceError(Exception):
    """An error that says what to do about it."""

    code = "internal"
    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class ConfigError(HeadraceError):
    """A setting is wrong: names the key, the value and the remedy. Restarting cannot help."""

    code = "config"
    exit_code = 2


class ProtocolError(HeadraceError):
    """The bytes that came are not a message of this protocol."""

    code = "protocol"


class PeerLost(HeadraceError):
    """A peer stayed silent past the time allowed."""

    code = "peer_lost"
    exit_code = 3


class RemoteError(HeadraceError):
    """A peer answered with an Error message; `code` is the peer's."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.code = code
        self.exit_code = ConfigError.exit_code if code in (ConfigError.code, "replaced") else HeadraceError.exit_code


class Finished(HeadraceError):
    """The job is done: whoever asked ends with exit code 0."""

    code = "finished"
    exit_code = 0
