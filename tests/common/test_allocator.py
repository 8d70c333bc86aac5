from __future__ import annotations

import subprocess
import sys

# Page faults of writing 64 MiB of fresh arrays again and again, in a process of its own: the setting is for good.
CODE = """
import resource, sys
import numpy as np
from common.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def once():
    arrays = [np.ones(1 << 18) for _ in range(32)]
for _ in range(2):
    once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    return int(subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True).stdout)


def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    assert faults("keep") < 100
    assert faults("leave") > 1000
