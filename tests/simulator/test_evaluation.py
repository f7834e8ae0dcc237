"""Scores of held-out questions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import SettingsError
from contracts.events import Message
from simulator.desk import Desk
from simulator.evaluation import score
from simulator.product import call
from tests.messages import calls, says


def test_right_answers_score_best_and_show_each_slice(desk: Desk) -> None:
    prompts = desk.held_out(0, 200)
    best = score(desk, prompts, [prompt.right for prompt in prompts])
    assert best.right_rate == 1.0
    assert best.violation_rate == 0.0
    assert set(best.right_by_intent) == {"order", "calc", "faq", "ambiguous", "unsafe", "human"}
    lazy = score(desk, prompts, [call("escalate")] * len(prompts))
    assert lazy.utility < best.utility - 10 * lazy.utility_se
    assert lazy.right_by_intent["human"] == 1.0
    assert lazy.right_by_intent["faq"] == 0.0


def test_answers_must_pair_with_questions(desk: Desk) -> None:
    with pytest.raises(SettingsError, match="in pairs"):
        score(desk, desk.held_out(0, 3), [call("refuse")])


def test_a_policy_of_the_desk_speaks_so_that_its_answers_can_be_judged(
    desk: Desk, tiny_policy: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_policy)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_policy)
    torch.manual_seed(0)
    answers = []
    prompts = desk.held_out(0, 40)
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**ids, max_new_tokens=24, do_sample=True)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(parsed(text))
    assert sum(bool(answer.tool_calls) for answer in answers) > 5
    broken = sum(desk.judge(p, a).utility == -1.0 for p, a in zip(prompts, answers, strict=True))
    assert broken < len(prompts) / 2


def parsed(text: str) -> Message:
    form = re.fullmatch(r'<tool_call>\{"name": "(\w+)", "arguments": (\{.*\})\}</tool_call>', text)
    return says(text) if form is None else calls(form[1], form[2])
