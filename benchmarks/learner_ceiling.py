"""What matrix products alone would take: the ceiling of an update on one thread.

Every linear layer of the model is multiplied in its order, each with weights of its own as in the
model, at the batch's own number of rows: forward (x times the transposed weights) and backward (the
gradient times the weights). It is done by `torch.mm` and by oneDNN's linear on weights packed
beforehand, which `torch.mm` does not use for float32; the faster of the two counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.learner_work import Product, products
from benchmarks.learner_workload import Size


def rates(size: Size, dtype: torch.dtype, tokens: int, scored: int) -> dict[str, dict[str, float]]:
    """Return operations per CPU second, forward and backward, by `torch.mm` and by oneDNN."""
    layers = [one for one, _ in products(size, tokens, scored)]
    work = sum(2.0 * one.rows * one.into * one.out for one in layers)
    return {
        direction: {way: work / _seconds(layers, dtype, direction, way) for way in ("mm", "onednn")}
        for direction in ("forward", "backward")
    }


def _seconds(layers: list[Product], dtype: torch.dtype, direction: str, way: str) -> float:
    """Return the CPU seconds of all layers in turn, the faster of two times."""
    given: dict[tuple[int, int], Tensor] = {}
    calls: list[Callable[[], Tensor]] = []
    for one in layers:
        into, out = (one.into, one.out) if direction == "forward" else (one.out, one.into)
        rows = given.setdefault((one.rows, into), torch.randn(one.rows, into).to(dtype))
        weights = torch.randn(out, into).to(dtype)
        calls.append(_call(rows, weights, way))
    found = []
    for _ in range(2):
        began = time.process_time()
        for call in calls:
            call()
        found.append(time.process_time() - began)
    return min(found)


def _call(rows: Tensor, weights: Tensor, way: str) -> Callable[[], Tensor]:
    if way == "mm":
        return lambda: torch.mm(rows, weights.t())
    packed = torch.ops.mkldnn._reorder_linear_weight(weights, rows.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
