"""How much of one message is kept in another: words in order, tool calls by their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from contracts.events import Message, text_of

MAX_WORDS = 2000
"""Words compared of each message: the work grows with their product."""


def similarity(answer: Message, wanted: Message) -> float:
    """Return the share of an answer that its correction kept, in [0, 1].

    That is twice the number of words kept in order over the number of words of both. Tool calls of
    the same names are compared by their arguments; another action keeps nothing.
    """
    if [call.function.name for call in answer.tool_calls] != [
        call.function.name for call in wanted.tool_calls
    ]:
        return 0.0
    return share_in_order(_words(answer), _words(wanted))


def share_in_order(one: Sequence[str], other: Sequence[str]) -> float:
    """Return twice the number of words kept in order over the number of both, 1 for two empty."""
    both = len(one) + len(other)
    return 2 * kept_in_order(one, other) / both if both else 1.0


def kept_in_order(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): each word of ``one``
    costs a few operations on integers of ``len(other)`` bits, so repeated words cost no more.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(other)) - 1
    unmatched = everywhere
    for word in one:
        hits = unmatched & places.get(word, 0)
        unmatched = ((unmatched + hits) | (unmatched - hits)) & everywhere
    return len(other) - unmatched.bit_count()


def _words(message: Message) -> list[str]:
    words = text_of(message).split()
    for call in message.tool_calls:
        words += _canonical(call.function.arguments).split()
    return words[:MAX_WORDS]


def _canonical(arguments: str) -> str:
    """Return JSON arguments with keys in order and one space after each value."""
    try:
        parsed = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    spaced = msgspec.json.encode(parsed, order="sorted").decode()
    return spaced.replace(",", " , ").replace(":", " : ")
