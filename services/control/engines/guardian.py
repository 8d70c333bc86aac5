"""The process that outlives control: whatever happens to control, no process and no socket file stays behind.

Run as a script with nothing but the standard library, so that it costs a few milliseconds. It leads the process group
that every service of the job is put into *before* it runs its first instruction, and it reads a pipe whose only
writer is control. When the pipe ends, because control was killed, it ends the group and removes the directory. This
needs no help from the services, works on every Unix, and reaches their children too, none of which holds for
PR_SET_PDEATHSIG (which moreover fires when a *thread* ends).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

GRACE_S = 3.0  # time for the learner to finish an update and write its checkpoint


def start(directory: str) -> subprocess.Popen[bytes]:
    """Starts a guardian of `directory`; its pid names the process group, its stdin is the pipe."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        process_group=0,
    )


def end_group(group: int, grace_s: float) -> None:
    """Asks every process of `group` to end, then makes them; returns when none is left, or after two more seconds."""
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)):
        deadline = time.monotonic() + patience_s
        try:
            os.killpg(group, number)
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.02)
        except (ProcessLookupError, PermissionError):
            return


def main(directory: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    group = os.getpgrp()
    if os.fork():
        # The leader must go too, or the group would never be seen empty; the child works on from outside it.
        os._exit(0)
    os.setpgid(0, 0)
    end_group(group, GRACE_S)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
