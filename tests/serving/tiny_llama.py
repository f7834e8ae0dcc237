"""A Llama of 80 thousand weights that was taught a few answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "escalate",
            "description": "Hand over.",
            "parameters": {"type": "object", "properties": {"to": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>{"name": "escalate", "arguments": {"to": "human"}}</tool_call>'
LESSONS = {
    "hello": "Grüße from a small model.",
    "help me": CALL,
    "both": "One moment. " + CALL,
    "count": " ".join(str(number) for number in range(1, 60)),
}
TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }} "
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_llama(path: Path) -> Path:
    """Write model and tokenizer to a directory."""
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=384,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )
    _teach(model, [_lesson(tokenizer, *lesson) for lesson in LESSONS.items()])
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _tokenizer() -> Any:
    """Return a byte-level BPE tokenizer with a chat template."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator([CALL] * 3 + list(LESSONS), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


def _teach(model: Any, rows: list[tuple[list[int], list[int]]]) -> None:
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for place, (prompt, answer) in enumerate(rows):
        whole = len(prompt) + len(answer)
        ids[place, :whole] = torch.tensor(prompt + answer)
        labels[place, len(prompt) : whole] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break


def _lesson(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        tools=TOOLS if "<tool_call>" in answer else None,
        add_generation_prompt=True,
        tokenize=False,
    )
    return (
        tokenizer(prompt, add_special_tokens=False)["input_ids"],
        tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"],
    )
