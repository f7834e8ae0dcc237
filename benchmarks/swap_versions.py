"""Adapters that say one token and no other, so that each token tells which version made it.

In the last layer's MLP, pairs of neurons get +u and -u as gate and as input: silu(u) u plus
silu(-u) (-u) is u², which is positive whatever the text. Their sum pushes the residual stream
towards the marker's embedding, far beyond what the base model puts there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from msgspec import Struct
from safetensors import safe_open
from safetensors.torch import save_file

RANK: Literal[8] = 8
LISTEN = 20.0
PUSH = 100.0
"""Far above the columns of the base's own down projection, which the same neurons go through."""
LEAST_LEAD = 0.2
"""By how much of its logit a marker leads the next token where the adapter alone decides."""
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class Marked(Struct, frozen=True):
    """A version: its name, its directory, and the one token that it says."""

    name: str
    path: Path
    token: int
    text: str


def make_model(path: Path) -> Path:
    """Write an untrained Llama of a million weights that reads bytes; return ``path``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=special[0], eos_token=special[2], chat_template=template
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def make_versions(model: Path, folder: Path, count: int) -> list[Marked]:
    """Write adapters ``v000``, ``v001``, …; neighbours have different markers."""
    heads, norm = _output(model)
    found = _markers(model, heads, norm)
    if len(found) < 2:
        raise ValueError(f"{model} has {len(found)} letters that are one token; 2 are needed")
    versions = []
    for number in range(count):
        text, token = found[number % len(found)]
        version = Marked(f"v{number:03}", folder / f"v{number:03}", token, text)
        _write(model, version, (heads[token] - heads.mean(0)) / norm)
        versions.append(version)
    return versions


def _output(model: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (output embeddings [vocabulary, hidden], weight of the last norm [hidden])."""
    found: dict[str, torch.Tensor] = {}
    wanted = ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight")
    for path in model.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            held = set(file.keys())
            found |= {name: file.get_tensor(name).float() for name in wanted if name in held}
    return found.get(wanted[0], found[wanted[1]]), found[wanted[2]]


def _markers(model: Path, heads: torch.Tensor, norm: torch.Tensor) -> list[tuple[str, int]]:
    """Return (letter, token id) of each letter whose direction makes it the likeliest token."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    found = []
    for letter in LETTERS:
        ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            best = (heads @ (heads[ids[0]] - heads.mean(0))).topk(2)
            first, second = best.values.tolist()
            if int(best.indices[0]) == ids[0] and first - second >= LEAST_LEAD * first:
                found.append((letter, int(ids[0])))
    return found


def _write(model: Path, version: Marked, direction: torch.Tensor) -> None:
    config = json.loads((model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    last = config["num_hidden_layers"] - 1
    source = torch.Generator().manual_seed(0)
    listen = torch.randn(RANK, hidden, generator=source) / hidden**0.5
    spread, gather = torch.zeros(inner, RANK), torch.zeros(RANK, inner)
    for row in range(RANK):
        spread[2 * row, row], spread[2 * row + 1, row] = LISTEN, -LISTEN
    gather[0, : 2 * RANK] = 1.0
    push = torch.zeros(hidden, RANK)
    push[:, 0] = PUSH * direction / direction.norm()
    pairs = {
        "gate_proj": (listen, spread),
        "up_proj": (listen, spread),
        "down_proj": (gather, push),
    }
    tensors = {
        f"base_model.model.model.layers.{last}.mlp.{name}.lora_{side}.weight": tensor.clone()
        for name, pair in pairs.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    version.path.mkdir(parents=True)
    save_file(tensors, version.path / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(pairs),
        "layers_to_transform": [last],
        "inference_mode": True,
    }
    (version.path / "adapter_config.json").write_text(json.dumps(described))
