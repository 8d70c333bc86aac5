"""What the processor is, as far as the fastest form of a pass depends on it; knows no network."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def is_intel(cpuinfo: Path = _CPUINFO) -> bool:
    """Says whether the processor is one of Intel's; False where the system does not say."""
    return cpuinfo.exists() and "GenuineIntel" in cpuinfo.read_text()


def has_bf16(device: torch.device) -> bool:
    """Says whether convolutions in bfloat16 are fast on a device: without instructions for it they are slower, by far.

    Intel's AVX-512 ones make half as many products as those of 32 bits (measured: a half slower); its AMX is fast.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    vector = torch.cpu._is_avx512_bf16_supported() and not is_intel()
    return device.type == "cpu" and (vector or torch.cpu._is_amx_tile_supported())
