"""Causal attention within sequences that lie one after another, without padding.

On a GPU this is FlashAttention's own form. Elsewhere queries are taken in blocks, so that what a
block cannot see is not computed; scores, their soft cap and the softmax are those of the models'
own "eager" form. Shape suffixes: n tokens of all sequences, h query heads, k key heads, g query
heads per key head, d dimensions, r rows of a block: its tokens times g, s the keys it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn

from learner.products import times, times_transposed, transposed_times

BLOCKS = (64, 128)
"""Queries in a block of sequences up to `SHORT` tokens, and of longer ones."""

SHORT = 256
"""Probabilities of blocks with at most so many keys are kept for the backward pass; of longer ones
they are computed again, since they outgrow everything else."""

MASKED = -1e30


class Attention(Struct, frozen=True):
    """How a layer attends: the factor of scores, which queries come multiplied with, their soft
    cap, and how far back it sees."""

    scale: float
    cap: float | None = None
    window: int | None = None


class _QueryBlock(Struct, frozen=True):
    """Query tokens ``first`` to ``end`` of the pass see keys from ``start`` on."""

    first: int
    end: int
    start: int


class Sequences(Struct, frozen=True):
    """The lengths of sequences one after another, and where each begins and the last ends."""

    lengths: tuple[int, ...]
    bounds: Tensor


def sequences_of(lengths: Sequence[int], device: torch.device) -> Sequences:
    """Return sequences of these lengths, for attention on a device."""
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return Sequences(tuple(lengths), bounds.to(device))


def attend(
    q_nhd: Tensor, k_nkd: Tensor, v_nkd: Tensor, how: Attention, sequences: Sequences
) -> Tensor:
    """Return what each token attends to, shape nhd; queries come multiplied with the factor."""
    if _has_kernel(q_nhd, how):
        found = varlen_attn(
            *(q_nhd, k_nkd, v_nkd, sequences.bounds, sequences.bounds),
            *(max(sequences.lengths), max(sequences.lengths)),
            scale=1.0,
            window_size=(how.window - 1 if how.window else -1, 0),
            enable_gqa=True,
        )
        assert isinstance(found, Tensor)
        return found
    blocks = []
    begin = 0
    for length in sequences.lengths:
        size = BLOCKS[length > SHORT]
        for at in range(0, length, size):
            first, end = begin + at, begin + min(at + size, length)
            back = first - how.window + 1 if how.window else begin
            blocks.append(_QueryBlock(first, end, max(begin, back)))
        begin += length
    given = (q_nhd, k_nkd, v_nkd, how, blocks)
    o_nhd: Tensor = _Attend.apply(*given)  # type: ignore[no-untyped-call] # torch gives it no types
    return o_nhd


def _has_kernel(q_nhd: Tensor, how: Attention) -> bool:
    """Return whether FlashAttention for sequences of any length does it: on a GPU, in half."""
    half = q_nhd.dtype in (torch.bfloat16, torch.float16)
    return q_nhd.device.type == "cuda" and half and how.cap is None and q_nhd.shape[-1] <= 256


class _Attend(torch.autograd.Function):
    """Attention with an explicit backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        q_nhd: Tensor,
        k_nkd: Tensor,
        v_nkd: Tensor,
        how: Attention,
        blocks: list[_QueryBlock],
    ) -> Tensor:
        q_kngd = q_nhd.unflatten(1, (k_nkd.shape[1], -1)).transpose(0, 1).contiguous()
        k_knd, v_knd = (one.transpose(0, 1).contiguous() for one in (k_nkd, v_nkd))
        keys, tokens, group, width = q_kngd.shape
        o_nkgd = q_kngd.new_empty(tokens, keys, group, width)
        kept: list[Tensor | None] = []
        for block in blocks:
            p_krs, _ = _probabilities(q_kngd, k_knd, how, block)
            out_krd = _batched(p_krs, v_knd[:, block.start : block.end])
            rows_kngd = out_krd.view(keys, -1, group, width)
            o_nkgd[block.first : block.end] = rows_kngd.transpose(0, 1)
            keep = block.end - block.start <= SHORT and how.cap is None
            kept.append(p_krs if keep else None)
        o_nhd: Tensor = o_nkgd.flatten(1, 2)
        ctx.save_for_backward(q_kngd, k_knd, v_knd, o_nhd, *kept)
        ctx.how, ctx.blocks = how, blocks
        return o_nhd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_nhd: Tensor) -> tuple[Tensor | None, ...]:
        q_kngd, k_knd, v_knd, o_nhd, *kept = ctx.saved_tensors
        keys, group = q_kngd.shape[0], q_kngd.shape[2]
        dq_kngd = torch.empty_like(q_kngd)
        dk_knd, dv_knd = torch.zeros_like(k_knd), torch.zeros_like(v_knd)
        delta_nkg1 = (do_nhd * o_nhd).sum(-1, keepdim=True).unflatten(1, (keys, group))
        do_nkgd = do_nhd.unflatten(1, (keys, group))
        for block, probabilities in zip(ctx.blocks, kept, strict=True):
            slope_krs = None
            p_krs = probabilities
            if p_krs is None:
                p_krs, slope_krs = _probabilities(q_kngd, k_knd, ctx.how, block)
            rows, seen = slice(block.first, block.end), slice(block.start, block.end)
            do_krd = do_nkgd[rows].transpose(0, 1).flatten(1, 2)
            dv_knd[:, seen] += _batched_transposed(p_krs, do_krd)
            ds_krs = _batched_times_transposed(do_krd, v_knd[:, seen])
            ds_krs.sub_(delta_nkg1[rows].transpose(0, 1).flatten(1, 2)).mul_(p_krs)
            if slope_krs is not None:
                ds_krs.mul_(slope_krs)
            dq_kngd[:, rows] = _batched(ds_krs, k_knd[:, seen]).unflatten(1, (-1, group))
            dk_knd[:, seen] += _batched_transposed(ds_krs, q_kngd[:, rows].flatten(1, 2))
        dq_nhd = dq_kngd.transpose(0, 1).flatten(1, 2)
        return dq_nhd, dk_knd.transpose(0, 1), dv_knd.transpose(0, 1), None, None


def _probabilities(
    q_kngd: Tensor, k_knd: Tensor, how: Attention, block: _QueryBlock
) -> tuple[Tensor, Tensor | None]:
    """Return a block's probabilities, and the slope of the soft cap where there is one."""
    q_krd = q_kngd[:, block.first : block.end].flatten(1, 2)
    s_krs = _batched_times_transposed(q_krd, k_knd[:, block.start : block.end])
    slope_krs = None
    if how.cap is not None:
        bent_krs = torch.tanh(s_krs / how.cap)
        s_krs, slope_krs = bent_krs * how.cap, 1.0 - bent_krs.square()
    rows, keys = block.end - block.first, block.end - block.start
    like = (s_krs.dtype, s_krs.device)
    view_ktgs = s_krs.unflatten(1, (rows, -1))
    view_ktgs[..., keys - rows :] += _ahead(rows, *like)
    if how.window and keys > how.window:
        view_ktgs[..., : keys - how.window] += _behind(rows, keys - how.window, *like)
    return torch.softmax(s_krs, -1), slope_krs


@lru_cache(maxsize=256)
def _ahead(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what keeps each of some tokens from seeing those after it, shape t1s."""
    mask_ts = torch.full((rows, rows), MASKED).triu(1)
    return mask_ts[:, None].to(device, dtype)


@lru_cache(maxsize=256)
def _behind(rows: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what keeps some tokens from seeing keys that the last of them cannot see."""
    mask_ts = torch.full((rows, keys), MASKED).tril(keys - rows)
    return mask_ts[:, None].to(device, dtype)


def _is_long(first_kab: Tensor, second: Tensor) -> bool:
    """Return whether oneDNN, a call per head, beats MKL, a call for all; bfloat16 is oneDNN's."""
    return (
        first_kab.dtype == torch.float32
        and first_kab.device.type == "cpu"
        and max(*first_kab.shape[1:], *second.shape[1:]) > SHORT
    )


def _batched(first_kab: Tensor, second_kbc: Tensor) -> Tensor:
    if _is_long(first_kab, second_kbc):
        return torch.stack([times(a, b) for a, b in zip(first_kab, second_kbc, strict=True)])
    return torch.bmm(first_kab, second_kbc)


def _batched_times_transposed(first_kab: Tensor, second_kcb: Tensor) -> Tensor:
    if _is_long(first_kab, second_kcb):
        pairs = zip(first_kab, second_kcb, strict=True)
        return torch.stack([times_transposed(a, c) for a, c in pairs])
    return torch.bmm(first_kab, second_kcb.transpose(1, 2))


def _batched_transposed(first_kba: Tensor, second_kbc: Tensor) -> Tensor:
    if _is_long(first_kba, second_kbc):
        pairs = zip(first_kba, second_kbc, strict=True)
        return torch.stack([transposed_times(b, c) for b, c in pairs])
    return torch.bmm(first_kba.transpose(1, 2), second_kbc)
