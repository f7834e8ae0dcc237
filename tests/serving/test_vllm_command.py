"""The command of the local vLLM names the number format that the processor computes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.settings import Engine, Policy, Settings
from serving.vllm_command import vllm_command


@pytest.mark.parametrize(
    ("given", "flags", "dtype"),
    [
        (Engine(), ["avx2"], "float32"),
        (Engine(), ["avx2", "avx512_bf16"], "auto"),
        (Engine(dtype="bfloat16"), ["avx2"], "bfloat16"),
    ],
)
def test_vllm_is_told_float32_where_bfloat16_is_not_native(
    given: Engine, flags: list[str], dtype: str
) -> None:
    settings = Settings(policy=Policy(model="/models/base"), engine=given)
    argv, _ = vllm_command(settings, 8000, Path("python3"), flags)
    assert argv[argv.index("--dtype") + 1] == dtype
