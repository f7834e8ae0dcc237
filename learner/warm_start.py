"""Make a small base policy from demonstrations: its tokenizer, and weights trained on them.

The result is an ordinary Hugging Face directory that vLLM and transformers serve unchanged. This
file knows nothing of any product: what the policy can do is what the demonstrations show.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from contracts.errors import SettingsError
from contracts.events import Message
from learner.chat_template import templated
from learner.warm_start_tokenizer import train_tokenizer

IGNORED = -100
FORM = (
    'write one a line: {"messages": [{"role": "user", "content": "…"}, '
    '{"role": "assistant", "content": "…"}]}'
)


class Recipe(Struct, frozen=True, kw_only=True):
    """Size of the policy and of its supervised training; ``threads`` is part of the result."""

    hidden: int = 128
    layers: int = 2
    intermediate: int = 256
    vocabulary: int = 2048
    max_length: int = 512
    batch: int = 64
    learning_rate: float = 2e-3
    warm_up: int = 40
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    threads: int = 2


class Example(Struct, frozen=True):
    """Token ids of a conversation; the first ``prompt`` of them are not trained on."""

    ids: tuple[int, ...]
    prompt: int


class Demonstration(Struct, frozen=True):
    """One conversation whose last message is the assistant's."""

    messages: tuple[Message, ...]


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Read one demonstration per line: ``{"messages": [..., {"role": "assistant", ...}]}``.

    Raises SettingsError with the line that is not one.
    """
    decoder = msgspec.json.Decoder(Demonstration)
    found: list[Demonstration] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            found.append(decoder.decode(line))
        except msgspec.MsgspecError as error:
            raise SettingsError(
                f"{path}:{number} is not a demonstration: {error}; {FORM}"
            ) from error
        messages = found[-1].messages
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise SettingsError(f"{path}:{number} does not end with what an assistant said; {FORM}")
    if not found:
        raise SettingsError(f"{path} holds no demonstration; {FORM}")
    return found


def make_policy(
    demonstrations: Sequence[Demonstration],
    out: Path,
    *,
    seed: int,
    steps: int,
    recipe: Recipe | None = None,
    progress: bool = True,
) -> Path:
    """Train a tokenizer and a small Llama on the assistant's tokens and write them to ``out``.

    ``out`` appears whole or not at all, and is refused when something is there. Equal inputs, seed
    and thread count give equal weights. SettingsError for these.
    """
    recipe = recipe or Recipe()
    _check_place(out)
    if steps < 1:
        raise SettingsError(f"{steps} steps train nothing; give at least 1")
    set_seed(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        conversations = [_plain(demonstration) for demonstration in demonstrations]
        tokenizer = train_tokenizer(conversations, recipe.vocabulary)
        examples = [encode_example(tokenizer, conversation) for conversation in conversations]
        model = new_model(tokenizer, recipe)
        train(model, examples, recipe, seed=seed, steps=steps, progress=progress)
    finally:
        torch.set_num_threads(before)
    return save_policy(model, tokenizer, out)


def train(
    model: PreTrainedModel,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    seed: int,
    steps: int,
    progress: bool,
) -> None:
    """Train all weights that have a gradient on what the assistant said; changes ``model``."""
    optimizer = torch.optim.AdamW(
        [one for one in model.parameters() if one.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    warm_up = min(recipe.warm_up, max(1, steps // 4))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 1.0) * (1.0 - 0.9 * min(step / steps, 1.0)),
    )
    decoder: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    model.train()
    batches = _batches(examples, recipe.batch, random.Random(seed))
    bar = tqdm(range(steps), desc="warm start", unit="step", disable=not progress)
    for _ in bar:
        ids, labels = _pad(next(batches), int(model.config.pad_token_id or 0))
        hidden_blh = decoder(input_ids=ids, use_cache=False).last_hidden_state
        said_bl = labels[:, 1:] != IGNORED
        loss = cross_entropy(head(hidden_blh[:, :-1][said_bl]), labels[:, 1:][said_bl])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def encode_example(
    tokenizer: PreTrainedTokenizerFast, conversation: list[dict[str, Any]]
) -> Example:
    """Tokenize a conversation as an engine sees it: prompt first, then what it must emit."""
    prompt = templated(tokenizer, conversation[:-1], ask=True)
    whole = templated(tokenizer, conversation)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer_ids = tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)
    return Example((*prompt_ids, *answer_ids), len(prompt_ids))


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """Return an untrained Llama with heads of 64 dimensions, the size vLLM serves everywhere."""
    heads = recipe.hidden // 64
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=64,
            max_position_embeddings=recipe.max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=recipe.hidden**-0.5,
            dtype="float32",
        )
    )


def _plain(demonstration: Demonstration) -> list[dict[str, Any]]:
    return [{"content": None, **msgspec.to_builtins(message)} for message in demonstration.messages]


def _batches(examples: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Yield batches without end; those of similar length go together, to save padding."""
    while True:
        order = rng.sample(range(len(examples)), len(examples))
        for start in range(0, len(order), size * 16):
            part = sorted(order[start : start + size * 16], key=lambda at: len(examples[at].ids))
            starts = list(range(0, len(part), size))
            rng.shuffle(starts)
            for at in starts:
                yield [examples[index] for index in part[at : at + size]]


def _pad(batch: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels, both (batch, length); right padding needs no mask when causal."""
    length = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), length), pad)
    labels = torch.full((len(batch), length), IGNORED)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        labels[row, example.prompt : len(example.ids)] = torch.tensor(example.ids[example.prompt :])
    return ids, labels


def save_policy(model: PreTrainedModel, tokenizer: Any, out: Path) -> Path:
    """Write an ordinary Hugging Face directory; ``out`` appears whole or not at all.

    SettingsError when something is there already.
    """
    _check_place(out)
    temporary = out.with_name(out.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(out)
    return out


def _check_place(out: Path) -> None:
    """Raise SettingsError unless ``out`` is free for a policy: nothing, or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is there already; name a new directory, or remove that one")
