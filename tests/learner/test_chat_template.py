"""Whatever the learner makes of a chat template is the same on every day."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer

from contracts.settings import Practice, Settings
from learner.assistant_turn import correction_ids
from learner.chat_template import templated
from learner.practice import read_practice
from learner.warm_start import encode_example
from tests.learner.families import TEMPLATE
from tests.messages import says

ROOT = Path(__file__).parents[2]
ASKED = [{"role": "user", "content": "w1"}]
LLAMA = """{%- if not date_string is defined -%}
{%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" -%}
{%- endif -%}
Today Date: {{ date_string }}, {{ messages[0].content }}"""
"""As those of Llama 3.2 find the date."""


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    """One whose template writes what no two moments share."""
    found = AutoTokenizer.from_pretrained(tiny_model)
    digits = "{{ strftime_now('%Y%m%d%H%M%S%f') | list | map('int') | join(' w') }} "
    found.chat_template = "w" + digits + TEMPLATE
    return found


def test_a_template_that_writes_the_date_gets_the_same_on_every_day(tokenizer: Any) -> None:
    tokenizer.chat_template = LLAMA

    assert templated(tokenizer, ASKED) == "Today Date: 26 Jul 2024, w1"


def test_a_template_that_takes_a_date_of_its_own_keeps_it(tokenizer: Any) -> None:
    given = 'strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024"'
    tokenizer.chat_template = LLAMA.replace(given, '"10 Dec 2023"')

    assert templated(tokenizer, ASKED) == "Today Date: 10 Dec 2023, w1"


def test_what_is_practised_does_not_depend_on_the_clock(
    tokenizer: Any, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"messages": ASKED, "expect": {"contains": ["w1"]}}))
    practice = msgspec.convert({"prompts": str(path), "max_tokens": 8}, Practice)
    learner = msgspec.structs.replace(settings.learner, practice=practice)
    settings = msgspec.structs.replace(settings, learner=learner)

    first, second = (read_practice(settings, tokenizer) for _ in range(2))

    assert first is not None
    assert second is not None
    assert first.exercises == second.exercises
    words = tokenizer.convert_ids_to_tokens(list(first.exercises[0].prompt_ids))
    assert words[:8] == [f"w{digit}" for digit in "20240726"]


def test_a_correction_keeps_the_end_of_its_turn_where_templates_write_the_time(
    tokenizer: Any,
) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "w9")

    ids = correction_ids(tokenizer, says("w3 w4"))

    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["w3", "w4", "w9"]


def test_a_demonstration_is_the_same_whenever_it_is_read(tokenizer: Any) -> None:
    conversation = [*ASKED, {"role": "assistant", "content": "w2"}]

    assert encode_example(tokenizer, conversation) == encode_example(tokenizer, conversation)


def test_nothing_else_in_the_learner_asks_a_template() -> None:
    callers = {
        path.name
        for path in (ROOT / "learner").rglob("*.py")
        if ".apply_chat_template(" in path.read_text()
    }

    assert callers == {"chat_template.py"}
