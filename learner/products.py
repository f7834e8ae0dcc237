"""Matrix products outside of autograd, by the fastest means that torch has on the device.

On a CPU torch multiplies float32 by MKL, which uses half of the vector width of processors that are
not Intel's; oneDNN, which torch has too, uses all of it. Shape suffixes: m rows, i inputs, o
outputs. Matrices must be contiguous, or the transpose of one that is: oneDNN is a thousand times
slower on others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def times_transposed(rows_mi: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
    """Return rows · weightᵀ + bias."""
    if rows_mi.device.type == "cpu" and _ONEDNN is not None and torch.backends.mkldnn.enabled:
        product: Tensor = _ONEDNN(rows_mi, weight_oi, bias_o, "none", [], "")
        return product
    return linear(rows_mi, weight_oi, bias_o)


def logits_of(rows_mi: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
    """Return rows · weightᵀ + bias in float32, not rounded to the weights' number format.

    In bfloat16 the rounding of the logits would be the largest error of a log-probability.
    """
    if weight_oi.dtype == torch.float32:
        return times_transposed(rows_mi, weight_oi, bias_o)
    if rows_mi.device.type == "cuda":
        product = torch.mm(rows_mi.to(weight_oi.dtype), weight_oi.t(), out_dtype=torch.float32)
        return product if bias_o is None else product.add_(bias_o)
    bias = None if bias_o is None else bias_o.float()
    return times_transposed(rows_mi.float(), weight_oi.float(), bias)


def times(rows_mo: Tensor, weight_oi: Tensor) -> Tensor:
    """Return rows · weight."""
    return times_transposed(rows_mo, weight_oi.t())


def transposed_times(rows_mi: Tensor, others_mo: Tensor) -> Tensor:
    """Return rowsᵀ · others, shape io: what few columns make of many rows."""
    return times_transposed(rows_mi.t(), others_mo.t())
