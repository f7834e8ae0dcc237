"""Tiny random models of the families that learn and serve, unlike enough to tell mistakes.

Norms, biases and scores are far from their first values, windows and caps small enough to bite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from learner.buckets import TokenSequence, bucketed
from learner.policy import Policy

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["<pad>", "<unk>", "<|start|>", "<|end|>", "user", "assistant", "<tool_call>", "?"]
TEMPLATE = (
    "{% for m in messages %}<|start|> {{ m.role }} {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant {% endif %}"
)

SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
WINDOW = {"sliding_window": 6}
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {**WINDOW, **MIXED, "use_sliding_window": True},
    "qwen3": {},
    "gemma": {},
    "gemma2": {
        **WINDOW,
        **MIXED,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 4,
    },
    "gemma3_text": {
        **WINDOW,
        **MIXED,
        "final_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 4,
    },
}
"""Families whose blocks are written out, and what each is given beyond the shape."""

OTHERS: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "olmo2": {},
}
"""Families that run by their own modules."""


def save_tokenizer(directory: Path) -> None:
    """Write a tokenizer of 48 words, with a chat template."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
    ).save_pretrained(directory)


def make_family(kind: str, directory: Path, **changes: Any) -> Path:
    """Write a model of the family and the tokenizer."""
    given = {**SHAPE, **{**FAMILIES, **OTHERS}[kind], **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **given))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5.0)
                else:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                assert parameter.isfinite().all(), name
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def teach(policy: Policy, steps: int = 4) -> None:
    """Make some answers likelier, so that no adapter is as it began."""
    asked = [TokenSequence((9, 10 + place), (20 + place, 30 - place, 3)) for place in range(8)]
    optimizer = torch.optim.AdamW(policy.adapters().values(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        for bucket in bucketed(asked, 64):
            logp_bt, _ = policy.score(bucket)
            (-logp_bt[bucket.mask_bt].mean()).backward()
        optimizer.step()
