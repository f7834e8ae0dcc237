"""The head of a causal model: from hidden states to log-probabilities of chosen tokens.

The head is frozen, so the gradient of a row's log-probability with respect to its hidden state is
formed in the forward pass, while the probabilities are at hand; all of them are never held (as in
Liger Kernel, arXiv 2410.10989, and Cut Cross-Entropy, arXiv 2411.09009). The vocabulary is gone
over a part at a time, with a running maximum and sum (Milakov & Gimelshein, arXiv 1805.02867), so
that each part of the weights is read from memory once. Shape suffixes: n rows, h hidden, v
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learner.products import logits_of, times

PARTS = {"cpu": (1024, 2 << 20), "cuda": (8192, 32 << 20)}
"""Rows at once, and logits at once: as many as a CPU's last cache holds, and as keep a GPU busy."""


class Scaling(Struct, frozen=True):
    """What a family does to its logits: times ``factor``, then cap·tanh(logits / cap)."""

    factor: float = 1.0
    cap: float | None = None

    def of(self, logits_nv: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits scaled, and the slope of the cap where there is one; uses them up."""
        if self.factor != 1.0:
            logits_nv.mul_(self.factor)
        if self.cap is None:
            return logits_nv, None
        bent_nv = logits_nv.div_(self.cap).tanh_()
        return bent_nv * self.cap, 1.0 - bent_nv.square()


def scaling_of(config: Any) -> Scaling:
    """Return how a model's configuration scales its logits; see `check_head`."""
    factor = getattr(config, "logit_scale", None)  # Cohere
    if factor is None:
        factor = getattr(config, "lm_head_multiplier", None)  # Falcon-H1
    if factor is None and getattr(config, "logits_scaling", None):  # Granite
        factor = 1.0 / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    return Scaling(1.0 if factor is None else float(factor), cap or None)


@torch.no_grad()
def check_head(model: Any, head: Head) -> float:
    """Return how far the head is from the model's own logits, as a share of the largest of them."""
    embeddings = model.get_input_embeddings()
    ids_1n = torch.arange(min(8, embeddings.num_embeddings), device=embeddings.weight.device)[None]
    wanted_nv = model(input_ids=ids_1n, use_cache=False).logits[0].float()
    hidden_nh = model.get_decoder()(input_ids=ids_1n, use_cache=False).last_hidden_state[0]
    return float((head.logits(hidden_nh) - wanted_nv).abs().max() / wanted_nv.abs().max())


class Head:
    """Scores rows of hidden states; ``linear`` is the model's own head."""

    def __init__(self, linear: nn.Linear, scaling: Scaling) -> None:
        self.linear = linear
        self.scaling = scaling

    @property
    def hidden_size(self) -> int:
        """Return the width of the hidden state that the head reads."""
        return self.linear.in_features

    def logprobs(self, rows_nh: Tensor, targets_n: Tensor, temperature_n: Tensor) -> Tensor:
        """Return each row's log-probability of its target, in float32."""
        given = (rows_nh, self, targets_n, temperature_n)
        found: Tensor = _LogProb.apply(*given)  # type: ignore[no-untyped-call] # torch gives it no types
        return found

    @torch.no_grad()
    def logits(self, rows_nh: Tensor) -> Tensor:
        """Return the logits of all tokens, scaled, in float32: for few rows, without gradient."""
        return torch.cat([logits_nv for _, _, logits_nv, _ in self.parts(rows_nh)], 1)

    def parts(self, rows_nh: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
        """Yield (first token, weights, logits, slope of the cap) of one part of the vocabulary."""
        weight_vh, bias_v = self.linear.weight, self.linear.bias
        _, logits = PARTS.get(rows_nh.device.type, PARTS["cpu"])
        width = max(1, logits // max(1, rows_nh.shape[0]))
        for at in range(0, weight_vh.shape[0], width):
            part_vh = weight_vh[at : at + width]
            bias = None if bias_v is None else bias_v[at : at + width]
            yield at, part_vh, *self.scaling.of(logits_of(rows_nh, part_vh, bias))


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_nh: Tensor, head: Head, targets_n: Tensor, temperature_n: Tensor
    ) -> Tensor:
        ctx.dtype = rows_nh.dtype
        needed = bool(ctx.needs_input_grad[0])
        whole = (rows_nh, targets_n[:, None], temperature_n[:, None])
        rows, _ = PARTS.get(rows_nh.device.type, PARTS["cpu"])
        parts = zip(*(one.split(rows) for one in whole), strict=True)
        scored = [_score(head, *part, with_slope=needed) for part in parts]
        slopes = [slope_nh for _, slope_nh in scored if slope_nh is not None]
        ctx.save_for_backward(torch.cat(slopes) if slopes else None)
        return torch.cat([logp_n1 for logp_n1, _ in scored])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogp_n: Tensor) -> tuple[Tensor | None, ...]:
        (slope_nh,) = ctx.saved_tensors
        return (slope_nh * dlogp_n[:, None]).to(ctx.dtype), None, None, None


def _score(
    head: Head, rows_nh: Tensor, targets_n1: Tensor, temperature_n1: Tensor, *, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities of the targets and, if asked, their gradients by row."""
    highest_n1 = torch.full_like(temperature_n1, -torch.inf, dtype=torch.float32)
    sum_n1, chosen_n1 = torch.zeros_like(highest_n1), torch.zeros_like(highest_n1)
    slope_n1 = torch.ones_like(highest_n1)
    mean_nh = torch.zeros_like(rows_nh, dtype=torch.float32)
    for at, part_vh, logits_nv, bend_nv in head.parts(rows_nh):
        logits_nv.div_(temperature_n1)
        place_n1 = targets_n1 - at
        here_n1 = (place_n1 >= 0) & (place_n1 < part_vh.shape[0])
        place_n1 = place_n1.where(here_n1, 0)
        chosen_n1 = logits_nv.gather(1, place_n1).where(here_n1, chosen_n1)
        if bend_nv is not None:
            slope_n1 = bend_nv.gather(1, place_n1).where(here_n1, slope_n1)
        before_n1, highest_n1 = highest_n1, highest_n1.maximum(logits_nv.amax(1, keepdim=True))
        shrink_n1 = torch.exp(before_n1 - highest_n1)
        share_nv = logits_nv.sub_(highest_n1).exp_()
        sum_n1 = sum_n1 * shrink_n1 + share_nv.sum(1, keepdim=True)
        if with_slope:
            if bend_nv is not None:
                share_nv.mul_(bend_nv)
            mean_nh.mul_(shrink_n1).add_(times(share_nv.to(part_vh.dtype), part_vh))
    logp_n1 = chosen_n1 - highest_n1 - sum_n1.log()
    if not with_slope:
        return logp_n1, None
    chosen_nh = head.linear.weight[targets_n1[:, 0]].float()
    slope_nh = chosen_nh.mul_(slope_n1).sub_(mean_nh.div_(sum_n1))
    return logp_n1, slope_nh.mul_(head.scaling.factor).div_(temperature_n1)
