"""The fastest of the forms that an actor's pass can take here, found by timing one pass in each.

Owns what is tried: numpy where there is such a form, and the memory format of images, which are free to change; and
bfloat16, which is not: what acted and what trains must agree on it, so its figure is only given. Knows no socket and no
configuration but what was left open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from common.rl.actor import Actor
from common.rl.networks import Inputs, Trunk
from common.rl.processor import has_bf16

log = logging.getLogger("headrace.inference")

# For the whole measurement, after the first pass in each form.
BUDGET_S = 0.6
_MOST_ROUNDS = 30
_LEAST_ROUNDS = 3


def settle_on(actor: Actor, in_torch: Callable[[], object], in_numpy: Callable[[], object] | None, rows: int) -> bool:
    """Leaves the actor as `settle` does, and says whether `in_numpy`, the same pass, is faster; logs what was measured.

    `in_torch` must wait for its device.
    """
    if in_numpy is None:
        said, faster = settle(actor, in_torch, rows), False
    else:
        said, faster = compare(in_torch, in_numpy, rows)
    if said:
        log.info("acts with %s", said)
    return faster


def compare(
    in_torch: Callable[[], object],
    in_numpy: Callable[[], object],
    rows: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[str, bool]:
    """Gives in words how long a pass of `rows` rows takes in torch and in numpy, and whether numpy is faster."""
    times = dict(zip(("torch", "numpy"), shortest([in_torch, in_numpy], clock), strict=True))
    faster, other = sorted(times, key=lambda name: times[name])
    said = f"{faster}: {times[faster] * 1e3:.2f} ms for {rows} rows, {other} {times[other] * 1e3:.2f} ms"
    return said, faster == "numpy"


def settle(actor: Actor, run: Callable[[], object], rows: int, clock: Callable[[], float] = time.perf_counter) -> str:
    """Leaves the actor's images in the memory format in which `run`, a pass of `rows` rows, takes less time.

    Gives what was measured, in words; empty where there is no image, or the config says in which format it is.
    """
    inputs = [module for module in actor.modules() if isinstance(module, Inputs) and module.either_format]
    if not inputs:
        return ""
    trunks = [module for module in actor.modules() if isinstance(module, Trunk) and not module.bf16]
    trunks = trunks if has_bf16(next(actor.parameters()).device) else []

    def form(last: bool, low: bool) -> Callable[[], object]:
        def take() -> object:
            for module in inputs:
                module.channels_last = last
            for trunk in trunks:
                trunk.bf16 = low
            return run()

        return take

    kinds = [(last, low) for low in ((False, True) if trunks else (False,)) for last in (False, True)]
    times = dict(zip(kinds, shortest([form(*kind) for kind in kinds], clock), strict=True))
    faster = times[True, False] < times[False, False]
    for module in inputs:
        module.channels_last = faster
    for trunk in trunks:
        trunk.bf16 = False
    return _said(times, faster, rows)


def shortest(passes: list[Callable[[], object]], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Gives the shortest time of each in seconds; they take turns, so that what slows the machine slows them all."""
    times = [float("inf")] * len(passes)
    for once in passes:
        once()
    began = clock()
    for turn in range(_MOST_ROUNDS):
        for i, once in enumerate(passes):
            before = clock()
            once()
            times[i] = min(times[i], clock() - before)
        if turn + 1 >= _LEAST_ROUNDS and clock() - began > BUDGET_S:
            break
    return times


def _said(times: dict[tuple[bool, bool], float], faster: bool, rows: int) -> str:
    names = ("contiguous", "channels_last")
    taken, other = (f"{times[last, False] * 1e3:.2f} ms" for last in (faster, not faster))
    said = f"{names[faster]} images: {taken} for {rows} rows, {names[not faster]} {other}"
    if low := [seconds for (_, lowered), seconds in times.items() if lowered]:
        said += f"; network.bf16=true, for all roles, would take {min(low) * 1e3:.2f} ms"
    return said
