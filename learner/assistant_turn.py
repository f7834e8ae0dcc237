"""The assistant's turn as the policy writes it: text with Hermes tool calls, and its tokens.

Knows the tokenizer and its chat template, nothing of the model.
"""

from __future__ import annotations

import json
from typing import Any

from contracts.events import Message, text_of
from learner.chat_template import templated


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
    """
    question = [{"role": "user", "content": "?"}]
    answer = {"role": "assistant", "content": assistant_text(message)}
    asked = templated(tokenizer, question, ask=True)
    told = templated(tokenizer, [*question, answer])
    turn = told[len(asked) :].rstrip() if told.startswith(asked) else answer["content"]
    if turn == answer["content"].rstrip():
        turn += tokenizer.eos_token or ""
    return tuple(tokenizer.encode(turn, add_special_tokens=False))
