"""Which device the policy is on, and what differs there: number formats, attention, the optimizer.

What is large lives on the device: base, adapters, hidden states. Batches are put together, and
losses reckoned, on the CPU: they are a few numbers per token.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

import torch
from msgspec import Struct
from torch import Tensor
from torch.utils import deterministic

from contracts.errors import SettingsError
from contracts.processor import bound_kernels, computes_bfloat16, processor_flags

DeviceName = Literal["auto", "cpu", "cuda"]
BaseDtype = Literal["auto", "float32", "bfloat16"]
PLACE = "LOCAL_RANK"
"""Environment variable with the number of this process on its machine, set by torchrun."""

_BETAS = (0.9, 0.98)
"""The squares of gradients are averaged over about 50 updates, not over torch's 1,000: a policy
learns on and on, and its steps are to follow what feedback teaches now."""


class Placement(Struct, frozen=True, kw_only=True):
    """Where a base is, what it is computed in there, and whether a pass computes parts again.

    ``shard``: the base is spread over the processes of torchrun, if there are several.
    """

    device: DeviceName = "auto"
    dtype: BaseDtype = "auto"
    recompute: bool = False
    shard: bool = False


ON_CPU = Placement(device="cpu")


def chosen_device(asked: DeviceName) -> torch.device:
    """Return the device that ``learner.device`` names; "auto" is a CUDA GPU where there is one.

    Among several GPUs a process of torchrun takes the one of its number. SettingsError for a GPU
    that is not there.
    """
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingsError(
            'learner.device is "cuda", but torch finds no GPU; give "cpu" or "auto", or install a '
            "build of torch for CUDA and its driver"
        )
    place = int(os.environ.get(PLACE, "0"))
    if place >= torch.cuda.device_count():
        raise SettingsError(
            f"{PLACE} is {place}, but there are {torch.cuda.device_count()} GPUs; start one process"
            " per GPU"
        )
    return torch.device("cuda", place)


def prepare(device: torch.device) -> None:
    """Bound what a CPU keeps of kernels; on a GPU, where kernels may add in any order, make equal
    batches give equal weights."""
    if device.type == "cpu":
        bound_kernels()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)
        # Not as a warning: then FlashAttention's backward pass adds in any order.
        torch.use_deterministic_algorithms(True)
        # Whatever is new is written whole, so that nothing need be filled first.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # the module's class has it


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return computes_bfloat16(processor_flags())


def adam(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.AdamW:
    """Return the optimizer of the adapters: all of them in one call, on either device."""
    return torch.optim.AdamW(
        list(parameters), lr=learning_rate, betas=_BETAS, weight_decay=0.0, fused=True
    )
