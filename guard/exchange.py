"""The parts of a conversation that the layers look at: what was asked, answered and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from contracts.events import Message, text_of
from guard.arguments import as_decoded, unescaped
from guard.personal_data import plain


class Turns(Struct, frozen=True):
    """What a user asked, by how long it counts.

    ``newest``: the newest user messages in a row and what tools said after them. ``previous``: the
    user turn before, unless it is settled. ``earlier``: the turn before, where it is settled, and
    all older ones that are not.
    """

    newest: str
    previous: str
    earlier: str


def turns_of(messages: Sequence[Message], settles: Callable[[Message], bool]) -> Turns:
    """Part a conversation; ``settles`` says whether an assistant message refused what was asked."""
    newest: list[str] = []
    previous: list[str] = []
    earlier: list[str] = []
    turn, user_seen, answered, settled = 0, False, False, False
    for message in reversed(messages):
        if message.role == "user":
            turn, user_seen, answered = turn + answered, True, False
            if turn > 1 and settled:
                break
            recent = newest if turn == 0 else previous
            (earlier if turn > 1 or settled else recent).append(text_of(message))
        elif message.role == "tool" and not user_seen:
            newest.append(text_of(message))
        elif message.role == "assistant" and user_seen:
            answered, settled = True, settled or settles(message)
    return Turns(*("\n".join(reversed(texts)) for texts in (newest, previous, earlier)))


def question_of(messages: Sequence[Message]) -> str:
    """Return the newest user messages in a row and whatever tools said after them."""
    return turns_of(messages, lambda _: False).newest


def told_by_user(messages: Sequence[Message]) -> str:
    """Return all that the user wrote in this conversation: repeating it leaks nothing.

    With JSON escapes, or with other spaces, dashes or digits than the plain ones, it is there in
    both writings.
    """
    told = "\n".join(text_of(message) for message in messages if message.role == "user")
    if "\\" in told:
        told = f"{told}\n{unescaped(told)}"
    return told if told.isascii() else f"{told}\n{plain(told)}"


def answer_text(answer: Message) -> str:
    """Return all that an answer gives out: its text, and its calls' arguments as decoded."""
    text = text_of(answer)
    if not answer.tool_calls:
        return text
    return "\n".join([text, *(as_decoded(call.function.arguments) for call in answer.tool_calls)])


def action_of(answer: Message) -> str:
    """Return the name of the first tool called, or "answer"."""
    return actions_of(answer)[0]


def actions_of(answer: Message) -> tuple[str, ...]:
    """Return the names of all tools called, or "answer" alone."""
    return tuple(call.function.name for call in answer.tool_calls) or ("answer",)
