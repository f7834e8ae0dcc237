"""An assistant's turn has the text and the tokens that the policy was taught to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer

from contracts.events import Message
from learner.assistant_turn import assistant_text, control_ids, correction_ids
from learner.warm_start import encode_example
from learner.warm_start_tokenizer import train_tokenizer
from tests.messages import calls, says

QUESTION = {"role": "user", "content": "where is order 17"}


def _call(**arguments: str) -> dict[str, Any]:
    function = {"name": "search", "arguments": json.dumps(arguments)}
    call = {"id": "c", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    "answer",
    [_call(order="17", day="monday"), _call(), {"role": "assistant", "content": "At nine."}],
)
def test_a_correction_is_tokenized_as_a_demonstration_is(answer: dict[str, Any]) -> None:
    conversation = [QUESTION, answer]
    tokenizer = train_tokenizer([conversation] * 5, 400)
    example = encode_example(tokenizer, conversation)

    found = correction_ids(tokenizer, msgspec.convert(answer, Message))

    assert found == example.ids[example.prompt :]


@pytest.mark.parametrize(
    "arguments", ['{"a":"\\ud800"}', '{"a":' + "[" * 100_000, '{"a":' + "9" * 100_000]
)
def test_a_correction_with_arguments_that_no_tokenizer_takes_still_has_tokens(
    arguments: str,
) -> None:
    tokenizer = train_tokenizer([[QUESTION, _call(order="17")]] * 5, 400)
    call = _call()
    call["tool_calls"][0]["function"]["arguments"] = arguments

    assert correction_ids(tokenizer, msgspec.convert(call, Message))


def test_a_tool_call_is_written_in_the_hermes_form() -> None:
    wanted = '<tool_call>{"name": "search", "arguments": {"n": 4}}</tool_call>'
    assert assistant_text(calls("search", '{"n":4}')) == wanted


def test_a_correction_becomes_the_turn_after_the_prompt_with_its_end(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    ids = correction_ids(tokenizer, says("w3 w4"))

    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["w3", "w4", "<|end|>"]


@pytest.mark.parametrize(
    "wanted", ["<|end|>", "w1 <|end|> <|start|> user w2", "<|start|>assistant w3<|end|>"]
)
def test_names_of_control_tokens_in_a_correction_are_text(tiny_model: Path, wanted: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    control = control_ids(tokenizer)

    ids = correction_ids(tokenizer, says(wanted))

    assert [place for place, one in enumerate(ids) if one in control] == [len(ids) - 1]
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == "<|end|>"
    harmless = correction_ids(tokenizer, says("w3 w4"))
    assert tokenizer.convert_ids_to_tokens(list(harmless)) == ["w3", "w4", "<|end|>"]


def test_a_call_beside_the_name_of_a_control_token_is_still_a_call() -> None:
    tokenizer = train_tokenizer([[QUESTION, _call(order="17", day="monday")]] * 5, 400)
    call = _call(order="17 " + tokenizer.eos_token)

    ids = correction_ids(tokenizer, msgspec.convert(call, Message))

    plain = correction_ids(tokenizer, msgspec.convert(_call(order="17"), Message))
    assert ids[0] == plain[0]
    assert ids[-1] == plain[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1]


@pytest.mark.parametrize("wanted", ["w1 <|end|> w2", "w1 w2"])
def test_what_a_template_writes_before_an_answer_stays_before_it(
    tiny_model: Path, wanted: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w7 ' if m.role == 'assistant' }}{{ m.content }} <|end|>"
        "{% endfor %}"
    )
    words = tokenizer.convert_ids_to_tokens(list(correction_ids(tokenizer, says(wanted))))
    assert (words[0], words[1], words[-2], words[-1]) == ("w7", "w1", "w2", "<|end|>")
    assert words.count("<|end|>") == 1


def test_the_end_of_a_turn_is_no_text_where_it_is_the_unknown_token_too(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.unk_token = "<|end|>"
    assert tokenizer.eos_token_id in control_ids(tokenizer)


def test_a_turn_that_ends_in_white_space_has_its_end_whatever_the_template(
    tiny_model: Path,
) -> None:
    """Such a template writes the turn another way than it asks for it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}w9 {% endif %}"
    )
    assert correction_ids(tokenizer, says("w1 w2\n")) == correction_ids(tokenizer, says("w1 w2"))
    assert correction_ids(tokenizer, says("w1 w2"))[-1] == tokenizer.eos_token_id
