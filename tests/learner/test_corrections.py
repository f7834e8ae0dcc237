"""A correction has the tokens that the policy itself was taught to write."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from contracts.events import Message
from learner.policy import correction_ids
from learner.warm_start import encode_example, train_tokenizer

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
