"""Linear layers with adapters that read the same input, multiplied as one; forward and backward.

    y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ

with the weights of the layers stacked, their A stacked, and their B on the diagonal of one matrix.
The base is frozen: there is no gradient of W. Adapters are kept in float32 and multiplied in the
base's number format. Shape suffixes: m rows, i inputs, o outputs of all layers, r the ranks of all
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learner.products import times, times_transposed, transposed_times

ADAPTER = "default"


class LoraStack:
    """The layers' weights become views of one tensor, so that nothing is held twice.

    All layers are PEFT's or none, and all have a bias or none.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        bases = [base_of(layer) for layer in layers]
        adapted = [layer for layer in layers if base_of(layer) is not layer]
        self._a: list[nn.Parameter] = [layer.lora_A[ADAPTER].weight for layer in adapted]
        self._b: list[nn.Parameter] = [layer.lora_B[ADAPTER].weight for layer in adapted]
        self._scale = float(adapted[0].scaling[ADAPTER]) if adapted else 0.0
        self._weight_oi = torch.cat([base.weight.detach() for base in bases])
        self.widths = [base.out_features for base in bases]
        for base, rows in zip(bases, self._weight_oi.split(self.widths), strict=True):
            base.weight.data = rows
        self._bias_o = _joined([base.bias for base in bases], self._weight_oi)
        ranks = sum(a.shape[0] for a in self._a)
        self._a_ri = self._weight_oi.new_empty(ranks, self._weight_oi.shape[1])
        self._b_or = self._weight_oi.new_zeros(self._weight_oi.shape[0], ranks)

    def parameters(self) -> list[nn.Parameter]:
        """Return A and B of each layer, in the order of the gradients of `backward`."""
        return [one for pair in zip(self._a, self._b, strict=True) for one in pair]

    def forward(self, x_mi: Tensor, *, adapted: bool) -> tuple[Tensor, Tensor | None]:
        """Return (y, x·Aᵀ for `backward`); without adapters the second is None."""
        x_mi = x_mi.to(self._weight_oi.dtype)
        y_mo = times_transposed(x_mi, self._weight_oi, self._bias_o)
        if not adapted or not self._a:
            return y_mo, None
        self._take_adapters()
        u_mr = times_transposed(x_mi, self._a_ri)
        return y_mo.addmm_(u_mr, self._b_or.t(), alpha=self._scale), u_mr

    def backward(
        self, dy_mo: Tensor, u_mr: Tensor | None, x_mi: Tensor, *, to_input: bool = True
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of x (None unless asked for) and of each A and B, in float32.

        The adapters are those of the last `forward`.
        """
        dtype = self._weight_oi.dtype
        dy_mo, x_mi = dy_mo.to(dtype), x_mi.to(dtype)
        if u_mr is None:
            return (times(dy_mo, self._weight_oi) if to_input else None), []
        du_mr = times(dy_mo, self._b_or).mul_(self._scale)
        da_ri = transposed_times(du_mr, x_mi).float()
        db_ro = transposed_times(u_mr, dy_mo).float().mul_(self._scale)
        dx_mi = times(dy_mo, self._weight_oi).addmm_(du_mr, self._a_ri) if to_input else None
        found, row, column = [], 0, 0
        for a, b in zip(self._a, self._b, strict=True):
            rank, width = a.shape[0], b.shape[0]
            found.append(da_ri[row : row + rank])
            found.append(db_ro[row : row + rank, column : column + width].t())
            row, column = row + rank, column + width
        return dx_mi, found

    @torch.no_grad()
    def _take_adapters(self) -> None:
        """Copy the adapters as they are now into the stacked matrices."""
        row = column = 0
        for a, b in zip(self._a, self._b, strict=True):
            rank, width = a.shape[0], b.shape[0]
            self._a_ri[row : row + rank] = a
            self._b_or[column : column + width, row : row + rank] = b
            row, column = row + rank, column + width


def base_of(layer: Any) -> Any:
    """Return the linear layer below adapters, or the layer itself when it has none."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def _joined(biases: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    """Return the biases of all layers in a row; None when none has one."""
    given = [bias for bias in biases if bias is not None]
    if not given:
        return None
    if len(given) < len(biases):
        raise ValueError(f"{len(given)} of {len(biases)} stacked layers have a bias: all or none")
    return torch.cat([bias.detach() for bias in given]).to(like.dtype)
