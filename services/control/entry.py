"""Where `headrace` begins: what a user can mend is one line and its remedy, never a traceback.

Imports next to nothing itself, so that Ctrl-C and a package that is missing are answered from the first moment on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from common.errors import HeadraceError
from services.control.extras import EXTRAS, missing

INTERRUPTED = 130


def main() -> None:
    """Runs the command line."""
    answered(_command_line)


def answered(run: Callable[[], object]) -> None:
    """Calls `run`, and ends the process with the exit code of its error."""
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except HeadraceError as error:
        _end(error)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        _end(missing(module))


def _command_line() -> None:
    from services.control.cli import app

    app()


def _end(error: HeadraceError) -> None:
    print(f"error: {error.message}", file=sys.stderr)
    if error.remedy:
        print(f"remedy: {error.remedy}", file=sys.stderr)
    sys.exit(error.exit_code)
