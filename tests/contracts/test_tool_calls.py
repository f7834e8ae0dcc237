"""Tool calls in raw text: whole, in pieces, broken, unoffered."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.events import ToolCall
from contracts.tool_calls import Piece, ToolCallScanner, answer_in, answer_message
from guard.exchange import action_of

CALL = '<tool_call>{"name": "escalate", "arguments": {"to": "human"}}</tool_call>'
OTHER = '<tool_call>{"name": "clarify", "arguments": {}}</tool_call>'


def scanned(*parts: str, offered: tuple[str, ...] = ("escalate", "clarify")) -> list[Piece]:
    scanner = ToolCallScanner(offered, "x")
    return [piece for part in parts for piece in scanner.feed(part)] + scanner.finish()


def seen(*parts: str, offered: tuple[str, ...] = ("escalate", "clarify")) -> tuple[str, list[str]]:
    """Return (text, "name arguments" of each call)."""
    message = answer_message(scanned(*parts, offered=offered))
    calls = [f"{call.function.name} {call.function.arguments}" for call in message.tool_calls]
    return str(message.content or ""), calls


@pytest.mark.parametrize(
    ("raw", "text", "calls"),
    [
        ("plain", "plain", []),
        ("", "", []),
        (" spaced \n", " spaced \n", []),
        (CALL, "", ['escalate {"to": "human"}']),
        ("One moment.\n" + CALL + "\n", "One moment.", ['escalate {"to": "human"}']),
        (CALL + "\n" + OTHER, "", ['escalate {"to": "human"}', "clarify {}"]),
        (CALL + " and more", "and more", ['escalate {"to": "human"}']),
        (CALL.removesuffix("</tool_call>"), "", ['escalate {"to": "human"}']),
        ('<tool_call>{"name": "clarify"}</tool_call>', "", ["clarify {}"]),
        ("<tool_call>\n" + CALL[11:-12] + "\n</tool_call>", "", ['escalate {"to": "human"}']),
    ],
)
def test_calls_are_taken_out_of_the_text(raw: str, text: str, calls: list[str]) -> None:
    assert seen(raw) == (text, calls)


@pytest.mark.parametrize(
    "raw",
    [
        "<tool_call>",
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": "escalate", "arguments": "text"}</tool_call>',
        '<tool_call>{"name": "escalate", "arguments": {</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "rm_rf", "arguments": {}}</tool_call>',
        "<tool_call>" + "[" * 5000 + "</tool_call>",
        "a < b and <tool_cal",
        "</tool_call>",
    ],
)
def test_what_is_no_offered_call_stays_text(raw: str) -> None:
    assert seen(raw) == (raw, [])


def test_without_tools_nothing_is_a_call_and_nothing_is_held_back() -> None:
    scanner = ToolCallScanner((), "x")
    assert scanner.feed(CALL + " <") == [CALL + " <"]
    assert scanner.finish() == []


def test_only_what_may_become_a_call_is_held_back() -> None:
    scanner = ToolCallScanner(("escalate",), "x")
    assert scanner.feed("Hello ") == ["Hello"]
    assert scanner.feed("you <") == [" you"]
    assert scanner.feed("b>") == [" <b>"]
    assert scanner.feed("<tool_") == []
    assert scanner.feed("box>") == ["<tool_box>"]


def test_ids_of_calls_differ() -> None:
    calls = [piece for piece in scanned(CALL, CALL) if isinstance(piece, ToolCall)]
    assert [call.id for call in calls] == ["call_x_1", "call_x_2"]


def test_the_action_is_the_first_call_or_answer() -> None:
    assert action_of(answer_message(scanned("yes"))) == "answer"
    assert action_of(answer_message(scanned("so " + OTHER + CALL))) == "clarify"


fragments = st.sampled_from(
    [CALL, OTHER, "<tool_call>", "</tool_call>", "<tool", "{", " ", "\n", "word", "<", "ü"]
)


@given(st.lists(fragments, max_size=8), st.data())
def test_the_split_into_chunks_changes_nothing(parts: list[str], data: st.DataObject) -> None:
    raw = "".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=6).map(sorted))
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert seen(*chunks) == seen(raw)


@given(st.lists(fragments, max_size=8))
def test_arguments_are_json_objects(parts: list[str]) -> None:
    for piece in scanned("".join(parts)):
        if isinstance(piece, ToolCall):
            assert isinstance(msgspec.json.decode(piece.function.arguments), dict)


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ("plain", []),
        (OTHER + " and " + CALL, ["clarify", "escalate"]),
        ('<tool_call>{"name": "pay", "arguments": {}}', ["pay"]),
        ("<tool_call>broken " + CALL, []),
        ('<tool_call>{"name": 5}</tool_call>' + CALL, ["escalate"]),
    ],
)
def test_the_calls_in_a_whole_text_are_those_of_every_tool_it_names(
    raw: str, names: list[str]
) -> None:
    assert [call.function.name for call in answer_in(raw).tool_calls] == names
