"""A decoder block of the Llama family, forward and backward written out.

A block is x + attention(norm(x)) with rotary positions (RoPE, arXiv 2104.09864) and RMSNorm (arXiv
1910.07467), then the same of a gated feed-forward; Gemma's have norms behind both as well, Qwen3's
and Gemma3's in front of queries and keys. What the plain modules spend on a CPU besides matrix
products, copies for autograd and activations kept twice, is left out: cheap parts are computed
again in the backward pass. What goes from block to block is float32, the rest is in the base's
number format. Shape suffixes: n tokens, i width of the model, h heads, d dimensions of a head, k
key heads, g query heads per key head, m width of the feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from msgspec import Struct
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, silu

from learner.causal_attention import Attention, Sequences, attend
from learner.lora_stack import LoraStack

Activation = Literal["silu", "gelu_tanh"]


class Norm(Struct, frozen=True):
    """Division by the root mean square, times a frozen weight; over the last axis, in float32."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normed rows and, for the other two, their inverse root mean square."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = size.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return self.again(x, inverse), inverse

    def again(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Return the normed rows once more."""
        return (x * inverse).mul_(self.weight)

    def backward(self, dy: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
        """Return the gradient of ``x``."""
        grad, rows = dy * self.weight, x.float()
        along = (grad * rows).sum(-1, keepdim=True)
        along.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return grad.mul_(inverse).addcmul_(rows, along)


class Block(Struct, frozen=True, kw_only=True):
    """One layer: its stacked linear layers, norms, activation and how it attends."""

    qkv: LoraStack
    out: LoraStack
    gate_up: LoraStack
    down: LoraStack
    before_attention: Norm
    behind_attention: Norm | None
    before_forward: Norm
    behind_forward: Norm | None
    query: Norm | None
    key: Norm | None
    width: int
    attention: Attention
    activation: Activation

    def run(
        self,
        x_ni: Tensor,
        rotation: tuple[Tensor, Tensor],
        sequences: Sequences,
        adapted: bool,
        rows_m: Tensor | None,
    ) -> Tensor:
        """Return the block's output; with ``rows_m`` that of these tokens only."""
        given = (x_ni, rotation, self, adapted, *self.qkv.parameters())
        parts = _Into.apply(*given)  # type: ignore[no-untyped-call] # torch gives it no types
        q_nhd, k_nkd, v_nkd = parts
        o_nhd = attend(q_nhd, k_nkd, v_nkd, self.attention, sequences)
        others = (self.out, self.gate_up, self.down)
        adapters = [one for stack in others for one in stack.parameters()]
        given = (x_ni, o_nhd, self, adapted, rows_m, *adapters)
        found: Tensor = _OutOf.apply(*given)  # type: ignore[no-untyped-call] # torch gives it no types
        return found


class _Into(torch.autograd.Function):
    """From the block's input to rotated queries, times the factor of scores, keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ni: Tensor,
        rotation: tuple[Tensor, Tensor],
        block: Block,
        adapted: bool,
        *_: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed_ni, inverse_n1 = block.before_attention.forward(x_ni)
        y_no, u_nr = block.qkv.forward(normed_ni, adapted=adapted)
        q_nhd, k_nkd, v_nkd = _heads(block, y_no)
        inverses: list[Tensor | None] = [None, None]
        if block.query and block.key:
            q_nhd, inverses[0] = block.query.forward(q_nhd)
            k_nkd, inverses[1] = block.key.forward(k_nkd)
        ctx.save_for_backward(
            x_ni, inverse_n1, u_nr, y_no if block.query else None, *inverses, *rotation
        )
        ctx.block = block
        q_nhd, k_nkd = _rotated(q_nhd, rotation), _rotated(k_nkd, rotation)
        dtype = y_no.dtype
        return q_nhd.mul_(block.attention.scale).to(dtype), k_nkd.to(dtype), v_nkd.contiguous()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dq_nhd: Tensor, dk_nkd: Tensor, dv_nkd: Tensor
    ) -> tuple[Tensor | None, ...]:
        block: Block = ctx.block
        x_ni, inverse_n1, u_nr, y_no, query, key, cos, sin = ctx.saved_tensors
        back = (cos, -sin)
        given_q = _rotated(dq_nhd, back).mul_(block.attention.scale)
        given_k = _rotated(dk_nkd, back)
        if block.query and block.key:
            q_nhd, k_nkd, _ = _heads(block, y_no)
            given_q = block.query.backward(given_q, q_nhd, query)
            given_k = block.key.backward(given_k, k_nkd, key)
        dy_no = dv_nkd.new_empty(x_ni.shape[0], sum(block.qkv.widths))
        given = (given_q, given_k, dv_nkd)
        for into_nhd, from_nhd in zip(_heads(block, dy_no), given, strict=True):
            into_nhd.copy_(from_nhd)
        normed_ni = block.before_attention.again(x_ni, inverse_n1)
        dx_ni, grads = block.qkv.backward(
            dy_no, u_nr, normed_ni, to_input=bool(ctx.needs_input_grad[0])
        )
        if dx_ni is not None:
            dx_ni = block.before_attention.backward(dx_ni, x_ni, inverse_n1)
        return dx_ni, None, None, None, *grads


class _OutOf(torch.autograd.Function):
    """From what was attended to, and the block's input, to its output."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ni: Tensor,
        o_nhd: Tensor,
        block: Block,
        adapted: bool,
        rows_m: Tensor | None,
        *_: Tensor,
    ) -> Tensor:
        o_no = o_nhd.flatten(1)
        if rows_m is not None:
            x_ni, o_no = x_ni[rows_m], o_no[rows_m]
        y_ni, uo_nr = block.out.forward(o_no, adapted=adapted)
        h_ni, attended = _added(block.behind_attention, x_ni, y_ni)
        normed_ni, inverse_n1 = block.before_forward.forward(h_ni)
        gu_nm, ug_nr = block.gate_up.forward(normed_ni, adapted=adapted)
        gate_nm, up_nm = gu_nm.chunk(2, dim=1)
        z_ni, ud_nr = block.down.forward(_bent(block, gate_nm).mul_(up_nm), adapted=adapted)
        out_ni, forwarded = _added(block.behind_forward, h_ni, z_ni)
        ctx.save_for_backward(
            *(rows_m, o_no, h_ni, inverse_n1, gu_nm, uo_nr, ug_nr, ud_nr, *attended, *forwarded)
        )
        ctx.block, ctx.shape = block, o_nhd.shape
        return out_ni

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_ni: Tensor) -> tuple[Tensor | None, ...]:
        block: Block = ctx.block
        rows_m, o_no, h_ni, inverse_n1, gu_nm, uo_nr, ug_nr, ud_nr, *behind = ctx.saved_tensors
        dz_ni = _before(block.behind_forward, dout_ni, behind[2:])
        gate_nm, up_nm = gu_nm.chunk(2, dim=1)
        bent_nm = _bent(block, gate_nm)
        dp_nm, down = block.down.backward(dz_ni, ud_nr, bent_nm * up_nm)
        assert dp_nm is not None
        dgu_nm = _ungated(block, dp_nm, bent_nm, gu_nm)
        normed_ni = block.before_forward.again(h_ni, inverse_n1)
        dn_ni, gate_up = block.gate_up.backward(dgu_nm, ug_nr, normed_ni)
        assert dn_ni is not None
        dh_ni = block.before_forward.backward(dn_ni, h_ni, inverse_n1).add_(dout_ni)
        dy_ni = _before(block.behind_attention, dh_ni, behind[:2])
        do_no, out = block.out.backward(dy_ni, uo_nr, o_no)
        assert do_no is not None
        if rows_m is not None:
            dh_ni = _spread(dh_ni, rows_m, ctx.shape[0])
            do_no = _spread(do_no, rows_m, ctx.shape[0])
        return dh_ni, do_no.view(ctx.shape), None, None, None, *out, *gate_up, *down


def _heads(block: Block, y_no: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the views of queries, keys and values by head."""
    q_no, k_no, v_no = y_no.split(block.qkv.widths, dim=1)
    width = block.width
    return (
        q_no.unflatten(1, (-1, width)),
        k_no.unflatten(1, (-1, width)),
        v_no.unflatten(1, (-1, width)),
    )


def _rotated(given_nhd: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return the rotary embedding of ``given_nhd``.

    A dimension and the one half the width away are a pair, as in the models' "rotate_half".
    """
    half = given_nhd.shape[-1] // 2
    cos_n1d, sin_n1d = (one[:, None, :half] for one in rotation)
    left, right = given_nhd[..., :half], given_nhd[..., half:]
    found = torch.empty_like(given_nhd, memory_format=torch.contiguous_format)
    torch.mul(left, cos_n1d, out=found[..., :half]).addcmul_(right, sin_n1d, value=-1)
    torch.mul(right, cos_n1d, out=found[..., half:]).addcmul_(left, sin_n1d)
    return found


def _bent(block: Block, gate_nm: Tensor) -> Tensor:
    return silu(gate_nm) if block.activation == "silu" else gelu(gate_nm, approximate="tanh")


def _ungated(block: Block, dp_nm: Tensor, bent_nm: Tensor, gu_nm: Tensor) -> Tensor:
    """Return the gradient of gate and up, and use up ``dp_nm``."""
    gate_nm, up_nm = gu_nm.chunk(2, dim=1)
    dgu_nm = torch.empty_like(gu_nm)
    dgate_nm, dup_nm = dgu_nm.chunk(2, dim=1)
    torch.mul(bent_nm, dp_nm, out=dup_nm)
    dp_nm.mul_(up_nm)
    if block.activation == "silu":
        torch.ops.aten.silu_backward.grad_input(dp_nm, gate_nm, grad_input=dgate_nm)
    else:
        torch.ops.aten.gelu_backward.grad_input(
            dp_nm, gate_nm, approximate="tanh", grad_input=dgate_nm
        )
    return dgu_nm


def _added(
    behind: Norm | None, x_ni: Tensor, y_ni: Tensor
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """Return x + y, y normed where the family does so, and what the backward pass needs of it."""
    if behind is None:
        return x_ni + y_ni, (None, None)
    normed_ni, inverse_n1 = behind.forward(y_ni)
    return normed_ni.add_(x_ni), (y_ni, inverse_n1)


def _before(behind: Norm | None, dy_ni: Tensor, kept: Sequence[Tensor]) -> Tensor:
    return dy_ni if behind is None else behind.backward(dy_ni, kept[0], kept[1])


def _spread(some_mi: Tensor, rows_m: Tensor, tokens: int) -> Tensor:
    return some_mi.new_zeros(tokens, some_mi.shape[1]).index_copy_(0, rows_m, some_mi)
