"""The assistant's turn as the policy writes it: text with Hermes tool calls, and its tokens.

Knows the tokenizer and its chat template, nothing of the model.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

from contracts.events import Message, text_of
from learner.chat_template import templated

_CALL_MARKS = ("<tool_call>", "</tool_call>")
_PLACE = "[place of the answer]"


def assistant_text(message: Message) -> str:
    """Return an assistant message as the policy would write it: content, then Hermes tool calls.

    Arguments that are no readable JSON stay as they are. JSON can escape half a surrogate pair,
    which no tokenizer takes: each becomes a question mark.
    """
    calls = (
        f'<tool_call>{{"name": {json.dumps(call.function.name)}, '
        f'"arguments": {_spaced(call.function.arguments)}}}</tool_call>'
        for call in message.tool_calls
    )
    return "".join((text_of(message), *calls)).encode(errors="replace").decode()


def _spaced(arguments: str) -> str:
    """Return JSON as chat templates write it: one space after each colon and comma."""
    try:
        return json.dumps(json.loads(arguments or "{}"), ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def correction_ids(tokenizer: Any, message: Message) -> tuple[int, ...]:
    """Return the tokens of an assistant turn, its end included, as they follow a prompt.

    What surrounds the text comes from the chat template: the difference between a conversation
    with the turn and one that asks for it. A template without an end of turn gets the tokenizer's.
    The name of a control token in what people wrote is text like any other: as a token it would
    teach the policy to end its turn, or to speak for others.
    """
    content = assistant_text(message)
    control = control_ids(tokenizer)
    marks = frozenset(mark for mark in _CALL_MARKS if {*_encoded(tokenizer, mark)} & control)
    parts = _split(content.rstrip(), marks)
    written = [_encoded(tokenizer, part) for part in parts if part not in marks]
    if control.isdisjoint(chain(*written)):
        return _encoded(tokenizer, _turn(tokenizer, content))
    found: list[int] = []
    for part in parts:
        ids = _encoded(tokenizer, part, as_text=part not in marks)
        found += ids if part in marks else (one for one in ids if one not in control)
    before, _, after = _turn(tokenizer, _PLACE).rpartition(_PLACE)
    return (*_encoded(tokenizer, before), *found, *_encoded(tokenizer, after))


def _split(content: str, marks: frozenset[str]) -> list[str]:
    """Return a text in parts, each of the marks in it by itself."""
    return re.split(f"({'|'.join(map(re.escape, sorted(marks)))})", content) if marks else [content]


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that stand for no text, such as the end of a turn."""
    added = tokenizer.added_tokens_decoder.items()
    found = {*tokenizer.all_special_ids, *(id_ for id_, one in added if one.special)}
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return frozenset(found - ({tokenizer.unk_token_id} - ends))


def _encoded(tokenizer: Any, text: str, *, as_text: bool = False) -> tuple[int, ...]:
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=as_text)
    return tuple(ids)


def _turn(tokenizer: Any, content: str) -> str:
    """Return an assistant's turn as the chat template writes it after the question."""
    question = [{"role": "user", "content": "?"}]
    asked = templated(tokenizer, question, ask=True)
    told = templated(tokenizer, [*question, {"role": "assistant", "content": content}])
    turn = (told[len(asked) :] if told.startswith(asked) else content).rstrip()
    if turn == content.rstrip():
        turn += tokenizer.eos_token or ""
    return turn
