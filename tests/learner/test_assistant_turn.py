"""An assistant's turn has the text and the tokens that the policy was taught to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer

from contracts.events import Message
from learner.assistant_turn import assistant_text, correction_ids
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
