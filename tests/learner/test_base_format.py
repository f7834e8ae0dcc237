"""The learner computes in bfloat16 a base stored so where the processor does, or when asked to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer

from contracts import processor
from contracts.settings import Policy, Settings
from learner.adapters import load_policy
from learner.base_model import base_identity


@pytest.mark.parametrize(
    ("stored", "flags", "asked", "wanted"),
    [
        ("bfloat16", "avx2", "auto", torch.float32),
        ("bfloat16", "avx2 avx512_bf16", "auto", torch.bfloat16),
        ("float32", "avx2 avx512_bf16", "auto", torch.float32),
        ("float32", "avx2", "bfloat16", torch.bfloat16),
        ("bfloat16", "avx2 avx512_bf16", "float32", torch.float32),
    ],
)
def test_the_processor_decides_over_a_base_stored_in_bfloat16_unless_a_format_is_asked_for(
    stored: str,
    flags: str,
    asked: Literal["auto", "float32", "bfloat16"],
    wanted: torch.dtype,
    settings: Settings,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=stored).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)

    learner = replace(settings.learner, base_dtype=asked)
    policy = load_policy(replace(settings, policy=Policy(model=str(tmp_path)), learner=learner))

    assert policy.model.dtype == wanted
    assert all(weights.dtype == torch.float32 for weights in policy.adapters().values())


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "tokenizer.model"])
def test_a_base_is_also_the_files_that_its_words_are_made_of(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "base"
    shutil.copytree(tiny_model, directory)

    def identity() -> str:
        return base_identity(str(directory), None)

    assert identity() == base_identity(str(tiny_model), None)
    (directory / name).write_text("a b\n")
    assert identity() == base_identity(str(tiny_model), None)  # tokenizer.json alone is read
    (directory / "tokenizer.json").unlink()
    found = {identity()}
    for words in ("a c\n", None):
        (directory / name).write_text(words) if words else (directory / name).unlink()
        found.add(identity())
    assert len(found) == 3
