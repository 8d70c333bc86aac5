"""The noise that sampling consumes: uniforms keyed by (seed, env, step), never drawn from a stream.

A counter-based generator has no state, so an action depends neither on when it was asked for nor on who shared its
batch. Must not know what the numbers are for. The mixing function is SplitMix64's finaliser (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_COMPONENT_BITS = 20


def _mix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ x >> 30) * _FIRST) & _MASK
    x = ((x ^ x >> 27) * _SECOND) & _MASK
    return x ^ x >> 31


def key(seed: int, step: int) -> int:
    """Gives 64 bits, a pure function of (seed, step), each of which depends on all of both."""
    return _mix(_mix(seed & _MASK) ^ (step & _MASK))


def uniforms(seed: int, envs: tuple[int, int], step: int, n: int) -> NDArray[np.float32]:
    """Gives float32 [count, n] in the open interval (0, 1), a pure function of (seed, env, step, component).

    `envs` is (first, count) of the env ids, which are below 2**44; n is below 2**20.
    """
    first, count = envs
    x: NDArray[np.uint64] = np.arange(first, first + count, dtype=np.uint64)[:, None] << np.uint64(_COMPONENT_BITS)
    if n != 1:
        x = np.add(x, np.arange(n, dtype=np.uint64), dtype=np.uint64)
    x *= np.uint64(_GOLDEN)
    x += np.uint64(key(seed, step))
    x ^= x >> np.uint64(30)
    x *= np.uint64(_FIRST)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_SECOND)
    x ^= x >> np.uint64(31)
    x >>= np.uint64(41)
    # 23 bits and a half: odd multiples of 2**-24 are exact in float32 and never 0 or 1.
    u = x.astype(np.float32)
    u += np.float32(0.5)
    u *= np.float32(2.0**-23)
    return u
