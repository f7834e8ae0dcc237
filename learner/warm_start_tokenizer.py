"""The tokenizer of a small base policy, trained on its demonstrations, and its chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant", "tool", "developer")

FRAMES = (
    '<tool_call>{"name": "',
    '", "arguments": {"',
    '", "arguments": {}}</tool_call>',
    '": "',
    '"}}</tool_call>',
    "<tool_call>",
    "</tool_call>",
)
"""Fixed parts of a tool call, one token each. They are not special tokens: a special token is cut
from the text an engine returns, and the call with it."""

WORDS = r"\d{1,3}| ?[\p{L}_]+| ?[^\s\p{L}\d_]+|\s+"
"""What byte pairs are never merged across."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>' -}}
{{- message.content or '' -}}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- set arguments = call.function.arguments -%}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' -}}
{{- arguments if arguments is string else arguments | tojson -}}
{{- '}</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
"""Tools are not rendered: the policy learned from demonstrations which ones there are."""


def train_tokenizer(
    conversations: Sequence[list[dict[str, Any]]], vocabulary: int
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer (every text encodes) with the chat template.

    Numbers of up to three digits are split from what surrounds them, so that the same number is
    the same token in a question and in the arguments of a call: copying is then attention alone.
    Identifiers with underscores are words, so that a frequent one is few tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=3,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_trainable_text(conversations), trainer)
    tokenizer.add_tokens([AddedToken(f, special=False, normalized=False) for f in FRAMES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _trainable_text(conversations: Sequence[list[dict[str, Any]]]) -> Iterator[str]:
    for conversation in conversations:
        for message in conversation:
            if message["content"]:
                yield message["content"]
            for call in message.get("tool_calls", ()):
                yield call["function"]["name"]
                # The frames hold the punctuation: train on what stands between.
                for name, value in json.loads(call["function"]["arguments"]).items():
                    yield name
                    yield str(value)
