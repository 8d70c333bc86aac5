"""One encoder's pass through torch.compile, with the way back: what cannot be compiled runs as it is, and says why.

Owns when a module is compiled and what is said of it. Weights are inputs of the compiled code, not part of it: whoever
writes them in place is followed. Knows no network.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

log = logging.getLogger("headrace.network")

_ROUNDS = 3


class Compiled:
    """A module's pass, compiled at its first call: once for acting, and once more where there is a gradient.

    The first failure, whatever it is, ends the attempt for good: a warning gives the reason, and the module itself
    answers this call and all others.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module = module
        self._name = name
        self._run: Callable[[Tensor], Tensor] | None = None
        self._tried: set[bool] = set()
        self.failed = ""

    def __call__(self, x: Tensor) -> Tensor:
        if self.failed or len(x) < 2:
            # One row would be code of its own, and is what a network is built with.
            return self._module(x)  # type: ignore[no-any-return]
        try:
            # Code for any number of rows at once: another size would be compiled anew, in the middle of a job.
            torch._dynamo.maybe_mark_dynamic(x, 0)
            if self._run is None:
                self._run = torch.compile(self._module)
            if (learns := torch.is_grad_enabled()) not in self._tried:
                self._tried.add(learns)
                self._try(x)
            return self._run(x)
        except Exception as error:
            self._run, self.failed = None, f"{type(error).__name__}: {' '.join(str(error).split())}"
            log.warning("network.compile: %s runs uncompiled: %.400s", self._name, self.failed)
            return self._module(x)  # type: ignore[no-any-return]

    def _try(self, x: Tensor) -> None:
        """Compiles, runs once each way, and says what it brings."""
        assert self._run is not None
        began = time.perf_counter()
        _pass(self._run, self._module, x)
        took = time.perf_counter() - began
        fast, slow = (min(_timed(run, self._module, x) for _ in range(_ROUNDS)) for run in (self._run, self._module))
        what = "forward and backward" if torch.is_grad_enabled() else "forward"
        log.info(
            "network.compile: %s compiled in %.1f s; %s of %d rows takes %.2f ms, uncompiled %.2f ms",
            *(self._name, took, what, len(x), fast * 1e3, slow * 1e3),
        )


def _pass(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> None:
    """Runs forward and, where there is a gradient to be had, backward; no gradient is kept."""
    features = run(x)
    wanted = [p for p in module.parameters() if p.requires_grad]
    if features.requires_grad and wanted:
        torch.autograd.grad(features.sum(), wanted)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _timed(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> float:
    began = time.perf_counter()
    _pass(run, module, x)
    return time.perf_counter() - began
