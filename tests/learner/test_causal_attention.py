"""Attention in blocks is attention with a mask, forward and backward."""

from __future__ import annotations

import pytest
import torch

from learner.causal_attention import Attention, attend, sequences_of

LENGTHS = (1, 70, 300, 129)


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 5, 64, 100])
def test_blocks_see_what_a_mask_lets_them_see(window: int | None, cap: float | None) -> None:
    torch.manual_seed(2)
    keys, group, width, tokens = 2, 3, 8, sum(LENGTHS)
    q, k, v = (
        torch.randn(shape, requires_grad=True)
        for shape in ((tokens, keys * group, width), (tokens, keys, width), (tokens, keys, width))
    )
    weights = torch.randn(tokens, keys * group, width)
    sequences = sequences_of(LENGTHS, torch.device("cpu"))

    found = attend(q, k, v, Attention(1.0, cap, window), sequences)
    slopes = torch.autograd.grad((found * weights).sum(), (q, k, v))

    at = torch.arange(tokens)
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    seen = (sequence[:, None] == sequence) & (at[:, None] >= at)
    if window:
        seen &= at[:, None] - at < window
    by_key = q.unflatten(1, (keys, group))
    scores = torch.einsum("nkgd,skd->kgns", by_key, k)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    wanted = torch.einsum("kgns,skd->nkgd", shares, v).flatten(1, 2)
    wanted_slopes = torch.autograd.grad((wanted * weights).sum(), (q, k, v))
    assert torch.allclose(found, wanted, atol=1e-5)
    for one, other in zip(slopes, wanted_slopes, strict=True):
        assert torch.allclose(one, other, atol=3e-5)
