"""The parts of a conversation that the layers look at: what was asked, answered and told."""

from __future__ import annotations

from collections.abc import Sequence

from contracts.events import Message, text_of


def question_of(messages: Sequence[Message]) -> str:
    """Return the newest user message and whatever tools said after it."""
    newest: list[str] = []
    for message in reversed(messages):
        newest.append(text_of(message))
        if message.role == "user":
            break
        if message.role not in ("tool", "user"):
            newest.pop()
    return "\n".join(reversed(newest))


def told_by_user(messages: Sequence[Message]) -> str:
    """Return all that the user wrote in this conversation: repeating it leaks nothing."""
    return "\n".join(text_of(message) for message in messages if message.role == "user")


def answer_text(answer: Message) -> str:
    """Return all that an answer gives out: its text and the arguments of its tool calls."""
    text = text_of(answer)
    if not answer.tool_calls:
        return text
    return "\n".join([text, *(call.function.arguments for call in answer.tool_calls)])


def action_of(answer: Message) -> str:
    """Return the name of the first tool called, or "answer"."""
    return answer.tool_calls[0].function.name if answer.tool_calls else "answer"
