"""What the processor of this machine computes in, as Linux tells it; knows no torch and no vLLM."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Any of these flags: arithmetic in bfloat16 (x86 vectors, x86 matrices, Arm)."""

KERNELS_KEPT = {"LRU_CACHE_CAPACITY": "8", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""How many kernels torch's layer above oneDNN, and oneDNN itself, keep: read at the first product.

Each number of rows has kernels of its own, and two batches rarely have the same one. The 1,024
kept by default are gigabytes that are not asked for again; 64 serve the layers of one pass."""


def bound_kernels() -> None:
    """Have this process keep few of the kernels of matrix products, where nobody said how many.

    To be called before the first product.
    """
    for name, entries in KERNELS_KEPT.items():
        os.environ.setdefault(name, entries)


def processor_flags(cpuinfo: Path | None = None) -> frozenset[str]:
    """Return the instruction set extensions by the kernel's names; none where it does not tell."""
    try:
        lines = (cpuinfo or CPUINFO).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, Arm
            return frozenset(words.split())
    return frozenset()


def computes_bfloat16(flags: Collection[str]) -> bool:
    """Return whether a processor with these flags has instructions for bfloat16."""
    return any(flag in flags for flag in BFLOAT16)


def engine_dtype(dtype: str, flags: Collection[str]) -> str:
    """Return the number format for an engine on a processor with these flags.

    What was asked for holds. "auto" is left to the engine where bfloat16 is native. Elsewhere it
    means float32: engines take bfloat16 for models stored so (vLLM also for those stored in
    float32), and without the instructions that is emulated, many times slower than float32.
    """
    return "float32" if dtype == "auto" and not computes_bfloat16(flags) else dtype
