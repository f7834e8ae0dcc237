"""What is found in the arguments of a tool call, however their JSON is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.events import FunctionCall, Message, ToolCall
from contracts.settings import Settings
from guard.arguments import as_decoded
from guard.layers import answered_by, asked_in, check_answer
from guard.rules import compile_rules
from guard.terms import Terms

CANARIES = Terms({"Zürich vault code 77": "line-1", 'the "blue" ledger': "line-2"}, whole=False)
RULES = msgspec.structs.replace(compile_rules(Settings()), canaries=CANARIES)


def found(arguments: str, told: str = "hi") -> list[str]:
    call = ToolCall(id="1", function=FunctionCall("send", arguments))
    answer = Message(role="assistant", tool_calls=(call,))
    asked = asked_in(RULES, [Message(role="user", content=told)])
    return [finding.rule for finding in check_answer(RULES, answered_by(answer, asked)).findings]


ESCAPED = [
    (r'{"t":"anna\u0040example.com"}', "e-mail"),
    (r'{"t":"4111\n1111\n1111\n1111"}', "card"),
    (r'{"t":"4111\u00a01111\u00a01111\u00a01111"}', "card"),
    (r'{"t":"DE89\n3704 0044 0532 0130 00"}', "iban"),
    (r'{"t":"\u0041KIAABCDEFGHIJKLMNOP"}', "aws-access-key"),
    (r'{"t":"is\tAKIAABCDEFGHIJKLMNOP"}', "aws-access-key"),
    (r'{"t":"x\nfuck"}', "profanity"),
    (r'{"t":"Z\u00fcrich vault code 77"}', "line-1"),
    (r'{"t":"the \"blue\" ledger"}', "line-2"),
    (r'{"anna\u0040example.com":1}', "e-mail"),
    (r'{"a":[{"b":["anna\u0040example.com"]}]}', "e-mail"),
    (r'{"t":"anna\u0040example.com","t":"x"}', "e-mail"),
    (r'{"card":4111111111111111}', "card"),
    (r'{"card":4111111111111111.0}', "card"),
    (r'{"card":4.111111111111111e15}', "card"),
    (r'{"t":"anna\u0040example.com', "e-mail"),
    (r"{'t':'anna\u0040example.com'}", "e-mail"),
    ("[" * 50_000 + r'"anna\u0040example.com"', "e-mail"),
]


@pytest.mark.parametrize(("arguments", "rule"), ESCAPED)
def test_what_a_client_decodes_is_found_however_it_is_written(arguments: str, rule: str) -> None:
    assert found(arguments) == [rule]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (r'{"t":"anna\u0040example.com"}', "I am anna@example.com"),
        (r'{"t":"x\nanna@example.com"}', "I am anna@example.com"),
        (r'{"t":"the \"blue\" ledger"}', 'What is the "blue" ledger?'),
        (r'{"t":"4111\u00a01111\u00a01111\u00a01111"}', "My card is 4111 1111 1111 1111"),
        (r'{"t":"anna@example.com"}', r'Send {"to": "anna\u0040example.com"}'),
    ],
)
def test_what_the_user_told_may_be_repeated_however_it_is_written(
    arguments: str, told: str
) -> None:
    assert found(arguments, told) == []


@pytest.mark.parametrize(
    "arguments",
    [
        r'{"path":"C:\\new\\table","code":"print(\"hi\")\n","q":"\ud83d\ude00 \ud83d"}',
        '{"price":4111.50,"share":1e-3,"far":1e999,"long":' + "1" * 5_000 + ".0}",
        '{"version":"4111111111111111.0"}',
        r'{"t":"\u00zz \x \ ',
        "not JSON at all \\",
    ],
)
def test_harmless_arguments_have_no_finding(arguments: str) -> None:
    assert found(arguments) == []


values = st.recursive(
    st.text() | st.integers() | st.booleans(), lambda inner: st.lists(inner, max_size=3)
)


def strings(item: Any) -> Iterator[str]:
    if isinstance(item, dict):
        yield from item
        item = list(item.values())
    if isinstance(item, list):
        for inner in item:
            yield from strings(inner)
    elif isinstance(item, str):
        yield item


@settings(max_examples=200, deadline=None)
@given(value=st.dictionaries(st.text(), values, max_size=3), ascii_only=st.booleans())
def test_every_string_of_the_arguments_is_in_what_is_searched(
    value: dict[str, Any], ascii_only: bool
) -> None:
    searched = as_decoded(json.dumps(value, ensure_ascii=ascii_only))
    assert all(string in searched for string in strings(value))
