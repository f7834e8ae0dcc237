"""The policy that `benchmarks.learning` starts from: a small chat model that saw a few labels.

The lower blocks of a pre-trained model and its head, trained on five labelled questions per topic
by `learner.warm_start`. Fewer blocks say less well what they could, in less time: what is compared
is how the same base goes on learning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from benchmarks.learning_questions import Topics
from learner.warm_start import Recipe, encode_example, save_policy, train

TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{- 'Customer: ' + message.content + '\\nTopic:' -}}
{%- else -%}{{- ' ' + message.content + eos_token -}}{%- endif -%}
{%- endfor -%}
"""
RECIPE = Recipe(batch=32, learning_rate=5e-4, warm_up=20, threads=1)
SHOWN = 6_000
"""Labelled questions shown in training, each one several times."""


def make_base(model: str, blocks: int, questions: Topics, out: Path, shown: int = SHOWN) -> Path:
    """Make the base from the first ``blocks`` blocks of a chat model, and return where it is.

    It is made once: what is in ``out`` already is taken as it is.
    """
    if (out / "config.json").is_file():
        return out
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    examples = [
        encode_example(
            tokenizer,
            [{"role": "user", "content": text}, {"role": "assistant", "content": answer}],
        )
        for text, answer in questions.labelled
    ]
    set_seed(0)
    cut: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, num_hidden_layers=blocks
    )
    cut.get_input_embeddings().weight.requires_grad_(False)
    train(cut, examples, RECIPE, seed=0, steps=shown // RECIPE.batch, progress=True)
    return save_policy(cut.to(torch.bfloat16), tokenizer, out)
