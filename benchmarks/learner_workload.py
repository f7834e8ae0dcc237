"""The batches, models and orders of the learner's benchmark.

Lengths are drawn evenly between two bounds, so that padding to the longest costs a known share;
token ids are drawn at random. The log-probabilities of the engine are the base's own with a little
noise, and rewards are +1 or -1.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

LORA_RANK: Literal[8] = 8
EPOCHS = 2


class Order(Struct, frozen=True, kw_only=True):
    """What a contestant is told: which model and batch, in which format, and what an update is.

    ``epochs`` and ``kl_weight`` are of a whole update alone; ``micro_batch`` is for the peer,
    ``bucket_tokens`` for ours.
    """

    model: str
    batch: str
    dtype: str
    kind: str
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    lora_rank: Literal[8, 16, 32, 64] = LORA_RANK
    epochs: int = EPOCHS
    kl_weight: float = 0.01
    length_scale: int = 8
    learning_rate: float = 5e-4
    micro_batch: int = 0
    bucket_tokens: int = 1024
    checkpointing: bool = False


class Row(Struct, frozen=True):
    """One logged answer; ``logprobs`` are the engine's."""

    prompt: list[int]
    response: list[int]
    logprobs: list[float]
    reward: float


class Load(Struct, frozen=True):
    """How many answers there are in a batch, and the bounds of their lengths."""

    rows: int
    prompt: tuple[int, int]
    response: tuple[int, int]


class Size(Struct, frozen=True):
    """What of a model decides the operations; ``attention`` and ``narrow`` are the widths of all
    query heads and of all key heads."""

    hidden: int
    attention: int
    narrow: int
    middle: int
    depth: int
    vocabulary: int


LOADS = {
    "tiny": Load(64, (24, 60), (8, 40)),
    "smollm2": Load(8, (96, 200), (24, 64)),
}


def draw(load: Load, vocabulary: int, seed: int) -> list[Row]:
    """Return a batch without log-probabilities."""
    rng = random.Random(seed)

    def ids(bounds: tuple[int, int]) -> list[int]:
        return [rng.randrange(8, vocabulary) for _ in range(rng.randint(*bounds))]

    return [
        Row(ids(load.prompt), ids(load.response), [], rng.choice((-1.0, 1.0)))
        for _ in range(load.rows)
    ]


def tokens(batch: list[Row]) -> tuple[int, int, int]:
    """Return the tokens in all, those of responses, and those after padding to the longest."""
    prompts, responses = [len(row.prompt) for row in batch], [len(row.response) for row in batch]
    padded = len(batch) * (max(prompts) + max(responses))
    return sum(prompts) + sum(responses), sum(responses), padded


def size_of(directory: Path) -> Size:
    """Return the size of a model of Llama's architecture from its configuration."""
    config = msgspec.json.decode((directory / "config.json").read_bytes())
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return Size(
        hidden=config["hidden_size"],
        attention=width * heads,
        narrow=width * (config.get("num_key_value_heads") or heads),
        middle=config["intermediate_size"],
        depth=config["num_hidden_layers"],
        vocabulary=config["vocab_size"],
    )


TINY: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
"""1.8 million weights, and 0.8 more in the head."""


def make_llama(directory: Path, shape: dict[str, Any], dtype: str = "float32") -> Path:
    """Write an untrained Llama and a tokenizer of 4096 words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, **{f"w{number}": number for number in range(2, 4096)}}
    raw: Any = Tokenizer(models.WordLevel(words, unk_token="<pad>"))  # noqa: S106 - a token of text
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",  # noqa: S106 - a token of text
        eos_token="<end>",  # noqa: S106 - a token of text
        chat_template="{% for m in messages %}{{ m.content }} {% endfor %}",
    ).save_pretrained(directory)
    torch.manual_seed(0)
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = LlamaConfig(**shape, **ends, tie_word_embeddings=True)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(directory)
    return directory
