"""The frozen base model: loaded in the number format asked for, named by what its files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from contracts.base_identity import identity_of
from learner.device import BaseDtype, computes_in_bfloat16


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
    if Path(name).is_dir():
        return identity_of(Path(name))
    return f"{name}@{getattr(model.config, '_commit_hash', None) or 'unknown'}"


def block_count(name: str) -> int:
    """Return the number of blocks of a base."""
    return int(AutoConfig.from_pretrained(name).num_hidden_layers)
