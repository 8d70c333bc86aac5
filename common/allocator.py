"""Tells the C library to keep the memory that is freed. Knows nothing of who asks for it."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> bool:
    """Makes allocations reuse what was freed; False where the C library is not glibc.

    Services allocate the same large arrays over and over. By default glibc gives each back to the system when it is
    freed, and having it again costs a page fault for every 4 KiB: on virtual machines, a third of an update's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 24), (_ARENA_MAX, 1))
    return 0 not in [mallopt(option, value) for option, value in settings]
