"""The processor's flags are read as the kernel writes them, and decide what "auto" means."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from contracts.processor import CPUINFO, computes_bfloat16, engine_dtype, processor_flags

ON_LINUX = pytest.mark.skipif(not CPUINFO.exists(), reason=f"no {CPUINFO} on {sys.platform}")
SPELLED_ALIKE = ("aes", "avx", "avx2", "avx512_bf16", "amx_bf16", "bmi2", "f16c", "sse2", "bf16")


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("processor\t: 0\nmodel name\t: avx512_bf16\n", False),
        ("", False),
    ],
)
def test_flags_are_read_as_the_kernel_writes_them(text: str, native: bool, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert computes_bfloat16(processor_flags(cpuinfo)) is native


def test_without_the_file_no_flag_is_known(tmp_path: Path) -> None:
    assert processor_flags(tmp_path / "cpuinfo") == frozenset()


@ON_LINUX
@pytest.mark.parametrize("name", SPELLED_ALIKE)
def test_flags_of_this_machine_are_those_torch_finds(name: str) -> None:
    assert (name in processor_flags()) is bool(torch.cpu.get_capabilities().get(name))


@pytest.mark.parametrize(
    ("dtype", "flags", "wanted"),
    [
        ("auto", ["avx2"], "float32"),
        ("auto", ["avx2", "avx512_bf16"], "auto"),
        ("bfloat16", ["avx2"], "bfloat16"),
        ("float32", ["avx512_bf16"], "float32"),
    ],
)
def test_auto_is_float32_where_bfloat16_is_not_native(
    dtype: str, flags: list[str], wanted: str
) -> None:
    assert engine_dtype(dtype, flags) == wanted
