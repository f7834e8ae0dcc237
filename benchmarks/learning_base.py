"""The policy that `benchmarks.learning` starts from: a small chat model that saw a few labels.

SmolLM2-135M trained on five labelled questions per topic by `learner.warm_start`: what a team
would do before it goes live.
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
RECIPE = Recipe(batch=32, learning_rate=2e-4, warm_up=20, threads=1)
SHOWN = 4_000
"""Labelled questions shown in training, each one several times."""


def make_base(model: str, questions: Topics, out: Path) -> Path:
    """Make the base from a chat model, and return where it is.

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
    base: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True
    )
    base.get_input_embeddings().weight.requires_grad_(False)
    train(base, examples, RECIPE, seed=0, steps=SHOWN // RECIPE.batch, progress=True)
    return save_policy(base.to(torch.bfloat16), tokenizer, out)
