"""What is a hang of a simulator, and what is not."""

import asyncio
import signal
import subprocess
import sys
import time

from jobs import until

from services.env_server.backends.watchdog import EXIT_CODE

# Two steps, each for as long as nothing comes to read.
STEPS = """
import sys
from services.env_server.backends.watchdog import Watchdog

watchdog = Watchdog(2.0)
for _ in range(2):
    with watchdog.step("env-0/0"):
        print("steps", flush=True)
        sys.stdin.readline()
"""


async def test_the_time_in_which_a_process_was_stopped_is_no_hang_and_a_hang_after_it_is_one() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", STEPS], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"steps\n"
            process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            await until(lambda: time.monotonic() > stopped + 3.0, "longer than a step may take")
            process.send_signal(signal.SIGCONT)
            went_on = time.monotonic()
            await until(lambda: process.poll() is not None or time.monotonic() > went_on + 1.0, "the next looks")
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert await asyncio.to_thread(process.stdout.readline) == b"steps\n"
            assert await asyncio.to_thread(process.wait, 20) == EXIT_CODE
        finally:
            process.kill()
