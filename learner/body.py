"""The body of a causal model as written-out blocks, where the model is of a family that we know.

What a model's layers are called decides whether it is one; then a few tokens go through the model's
own modules and through the blocks, and only when both give the same are the blocks used. Every
other model is run by its own modules.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from msgspec import Struct
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.block import Activation, Block, Norm
from learner.buckets import Bucket
from learner.causal_attention import Attention, Sequences, sequences_of
from learner.lora_stack import LoraStack, base_of

_log = logging.getLogger("learner")

PROBE = (5, 17)
"""Lengths of the sequences that blocks and modules are compared on."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference between both, as a share of the largest hidden state: rounding is far below it
and a missing norm, factor or bias far above."""

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_GEMMAS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_WINDOWED = {"mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"}
"""Models whose windows of attention we know; a probe is too short to meet a real one."""

_STEADY_ROTATIONS = {"default", "linear", "llama3", "yarn", "proportional"}
"""Rotary embeddings that do not change with the longest sequence of a pass."""


class Packed(Struct, frozen=True):
    """Sequences one after another; ``rows`` are the tokens whose hidden state is wanted."""

    ids_n: Tensor
    positions_n: Tensor
    sequences: Sequences
    rows_m: Tensor


def places(bucket: Bucket) -> Tensor:
    """Return where a bucket's tokens are, padding left out, when its rows are put in a row."""
    real_bl = torch.arange(bucket.ids_bl.shape[1]) < torch.tensor(bucket.lengths)[:, None]
    return real_bl.flatten().nonzero()[:, 0]


def packed(bucket: Bucket, device: torch.device) -> Packed:
    """Return a bucket's sequences one after another on a device, without its padding."""
    place_n, longest = places(bucket), bucket.ids_bl.shape[1]
    lengths_b1 = torch.tensor(bucket.lengths)[:, None]
    begin_b1 = lengths_b1.cumsum(0) - lengths_b1
    return Packed(
        ids_n=bucket.ids_bl.flatten()[place_n].to(device),
        positions_n=(place_n % longest).to(device),
        sequences=sequences_of(bucket.lengths, device),
        rows_m=(begin_b1 + bucket.rows_bt)[bucket.mask_bt].to(device),
    )


class Body:
    """Runs packed sequences through the blocks; see `body_of`."""

    def __init__(self, decoder: Any, blocks: Sequence[Block], *, recompute: bool = False) -> None:
        self._decoder = decoder
        self._recompute = recompute
        self._blocks = blocks
        self._kinds = list(getattr(decoder.config, "layer_types", None) or ())

    def run(self, packed: Packed, *, adapted: bool) -> Tensor:
        """Return the hidden states behind the last norm of the rows wanted, shape mi."""
        x_ni = self._decoder.embed_tokens(packed.ids_n[None])
        rotations = self._rotations(x_ni, packed.positions_n[None])
        x_ni, last = x_ni[0].float(), len(self._blocks) - 1
        for place, block in enumerate(self._blocks):
            given = (
                x_ni,
                rotations[self._kinds[place] if len(rotations) > 1 else ""],
                packed.sequences,
                adapted,
                packed.rows_m if place == last else None,
            )
            if self._recompute and torch.is_grad_enabled():
                x_ni = checkpoint(block.run, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                x_ni = block.run(*given)
        found: Tensor = self._decoder.norm(x_ni)
        return found

    def rotates_whole_heads(self) -> bool:
        """Return whether the rotary embedding is as wide as a head: partial ones are not ours."""
        probe = self._decoder.embed_tokens.weight[:1, None]
        found = self._rotations(probe, torch.zeros(1, 1, dtype=torch.long, device=probe.device))
        return all(cos.shape[-1] == self._blocks[0].width for cos, _ in found.values())

    def _rotations(self, x_1ni: Tensor, positions_1n: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return cosine and sine, shape nd, by kind of layer where the kinds differ in them."""
        rotary = self._decoder.rotary_emb
        if not hasattr(rotary, "layer_types"):
            cos, sin = rotary(x_1ni, positions_1n)
            return {"": (cos[0], sin[0])}
        found = {}
        for kind in sorted(set(self._kinds)):
            cos, sin = rotary(x_1ni, positions_1n, kind)
            found[kind] = (cos[0], sin[0])
        return found if len(found) > 1 else {"": next(iter(found.values()))}


@torch.no_grad()
def body_of(decoder: Any, seed: int, *, recompute: bool = False) -> Body | None:
    """Return the blocks of an adapted decoder, None when it has to be run by its own modules.

    With ``recompute`` a pass keeps one hidden state per token and block.
    """
    if not _is_known(decoder):
        return None
    lengths, count = PROBE, sum(PROBE)
    draw = torch.Generator().manual_seed(seed)
    ids_n = torch.randint(decoder.config.vocab_size, (count,), generator=draw)
    ids_n = ids_n.to(decoder.embed_tokens.weight.device)
    wanted_ni = torch.cat(
        [
            decoder(input_ids=part[None], use_cache=False).last_hidden_state[0]
            for part in ids_n.split(lengths)
        ]
    )
    body = Body(decoder, blocks_of(decoder), recompute=recompute)
    every_n = torch.arange(count, device=ids_n.device)
    positions_n = torch.cat([every_n[:length] for length in lengths])
    if not body.rotates_whole_heads():
        return None
    found_ni = body.run(
        Packed(ids_n, positions_n, sequences_of(lengths, ids_n.device), every_n), adapted=True
    )
    apart = float((found_ni - wanted_ni).abs().max() / wanted_ni.abs().max())
    if not apart <= TOLERANCE.get(wanted_ni.dtype, 0.0):
        _log.warning(
            "%s looks like a model of ours, but differs by %.1e; its own modules run, slower",
            *(type(decoder).__name__, apart),
        )
        return None
    return body


def blocks_of(decoder: Any) -> list[Block]:
    """Return the blocks of a decoder whose layers have the parts of one."""
    return [_block(decoder, layer) for layer in decoder.layers]


def _is_known(decoder: Any) -> bool:
    """Return whether every layer has the parts that blocks are made of, and no others."""
    outer = {"embed_tokens", "layers", "norm", "rotary_emb"}
    if {name for name, _ in decoder.named_children()} != outer:
        return False
    config = decoder.config
    if getattr(config, "sliding_window", None) and config.model_type not in _WINDOWED:
        return False
    rotary = decoder.rotary_emb
    kinds = getattr(rotary, "rope_type", "default")
    steady = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
    both_ways = getattr(config, "use_bidirectional_attention", False)
    if both_ways or not steady <= _STEADY_ROTATIONS:
        return False
    return _activation(config) is not None and all(map(_is_known_layer, decoder.layers))


def _is_known_layer(layer: nn.Module) -> bool:
    parts = _modules(layer)
    attention, feed = (_modules(parts.get(name)) for name in ("self_attn", "mlp"))
    return (
        parts.keys() - _GEMMAS == _PARTS
        and parts.keys() & _GEMMAS in (set(), _GEMMAS)
        and attention.keys() - _HEAD_NORMS == _PROJECTIONS
        and attention.keys() & _HEAD_NORMS in (set(), _HEAD_NORMS)
        and feed.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and _can_be_stacked([attention[name] for name in ("q_proj", "k_proj", "v_proj")])
        and _can_be_stacked([attention["o_proj"]])
        and _can_be_stacked([feed["gate_proj"], feed["up_proj"]])
        and _can_be_stacked([feed["down_proj"]])
    )


def _can_be_stacked(layers: Sequence[Any]) -> bool:
    """Return whether all have adapters, or none, and all have a bias, or none."""
    kinds = {type(layer) for layer in layers}
    biased = {base_of(layer).bias is not None for layer in layers}
    return len(biased) == 1 and kinds in ({LoraLinear}, {nn.Linear})


def _modules(module: nn.Module | None) -> dict[str, Any]:
    return {} if module is None else dict(module.named_children())


def _activation(config: Any) -> Activation | None:
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return _ACTIVATIONS.get(name or "")


def _block(decoder: Any, layer: Any) -> Block:
    attention, feed = layer.self_attn, layer.mlp
    gemma = hasattr(layer, "pre_feedforward_layernorm")
    activation = _activation(decoder.config)
    assert activation is not None
    window = getattr(attention, "sliding_window", None)
    if not hasattr(attention, "layer_type"):  # Mistral's has no kinds of layers: one for all
        window = getattr(decoder.config, "sliding_window", None)
    cap = getattr(attention, "attn_logit_softcapping", None)
    return Block(
        qkv=LoraStack([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=LoraStack([attention.o_proj]),
        gate_up=LoraStack([feed.gate_proj, feed.up_proj]),
        down=LoraStack([feed.down_proj]),
        before_attention=_norm(layer.input_layernorm),
        behind_attention=_norm(layer.post_attention_layernorm) if gemma else None,
        before_forward=_norm(
            layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm
        ),
        behind_forward=_norm(layer.post_feedforward_layernorm) if gemma else None,
        query=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        width=attention.head_dim,
        attention=Attention(attention.scaling, cap, window),
        activation=activation,
    )


def _norm(module: Any) -> Norm:
    """Return a norm; Gemma's multiply by 1 + weight."""
    weight = module.weight.detach().float()
    if type(module).__name__.startswith("Gemma"):
        weight = 1.0 + weight
    eps = getattr(module, "variance_epsilon", None)
    return Norm(weight, float(module.eps if eps is None else eps))
