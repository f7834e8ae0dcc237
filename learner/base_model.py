"""The frozen base model: loaded in the number format asked for, named by what its files hold."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from contracts.codec import to_json
from contracts.manifest import file_sha256
from learner.device import BaseDtype, computes_in_bfloat16

_WORDS = ("merges.txt", "vocab.txt", "*.model", "*.tiktoken")
"""What a tokenizer is made of where there is no tokenizer.json."""


def load_base(name: str, dtype: BaseDtype, device: torch.device, blocks: int = 0) -> Any:
    """Load a base in the number format that was asked for.

    "auto" is bfloat16 if it is stored so and the device computes in it, else float32: without
    such instructions bfloat16 is emulated and far slower than float32. ``blocks`` other than 0: the
    first so many blocks alone.
    """
    # Soft caps within attention are left out by every implementation but this one.
    capped = getattr(AutoConfig.from_pretrained(name), "attn_logit_softcapping", None)
    model: Any = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation="eager" if capped else None,
        **({"num_hidden_layers": blocks} if blocks else {}),
    )
    native = model.dtype == torch.bfloat16 and computes_in_bfloat16(device)
    if dtype == "auto" and not native:
        model = model.to(torch.float32)
    return model.to(device)


def base_identity(name: str, model: Any) -> str:
    """Return what the base is, the same on every machine: a hash of its files, or name@commit."""
    directory = Path(name)
    if not directory.is_dir():
        return f"{name}@{getattr(model.config, '_commit_hash', None) or 'unknown'}"
    kinds = ["*.safetensors", "*.json", "*.jinja"]
    if not (directory / "tokenizer.json").is_file():
        kinds += _WORDS  # with that file they are not read
    files = sorted(path for kind in kinds for path in directory.glob(kind))
    listing = {path.name: file_sha256(path) for path in files}
    return f"sha256:{sha256(to_json(listing)).hexdigest()}"


def block_count(name: str) -> int:
    """Return the number of blocks of a base."""
    return int(AutoConfig.from_pretrained(name).num_hidden_layers)
