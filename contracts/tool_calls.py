"""Tool calls in the Hermes form, found in an engine's raw text while it streams in.

``<tool_call>{"name": "...", "arguments": {...}}</tool_call>`` (NousResearch Hermes function
calling). What is no well-formed call of an offered tool stays text, so nothing is ever lost.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import msgspec
from msgspec import Struct

from contracts.events import FunctionCall, Id, Message, ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class _Call(Struct):
    name: Id
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


_calls = msgspec.json.Decoder(_Call)

Piece = str | ToolCall


class ToolCallScanner:
    """Splits a growing text into plain pieces and tool calls.

    It holds back only what may still become a tool call, and white space, which is dropped next
    to a call. ``offered`` are the names of the request's tools; empty: all is text.
    """

    def __init__(self, offered: Collection[str], call_id: str) -> None:
        self._offered = frozenset(offered)
        self._call_id = call_id
        self._held = ""
        self._open = False
        self._growing: list[str] = []
        self._end = ""
        self._calls = 0
        self._after_call = False

    def feed(self, text: str) -> list[Piece]:
        """Take more text and return the pieces that are now certain."""
        if not self._offered:
            return [text] if text else []
        pieces: list[Piece] = []
        if self._only_grows(text):
            return pieces
        self._keep(self._grown() + text)
        while (start := self._held.find(OPEN)) >= 0:
            end = self._held.find(CLOSE, start)
            if end < 0:
                break
            pieces += self._close(start, end, end + len(CLOSE))
        self._open = start >= 0
        certain = start if self._open else _certain(self._held)
        certain = len(self._held[:certain].rstrip())
        if certain:
            pieces.append(self._held[:certain])
            self._keep(self._held[certain:])
        return pieces

    def finish(self) -> list[Piece]:
        """Return the rest at the end of the text; an unclosed but whole call still counts."""
        pieces: list[Piece] = []
        self._held = self._grown()
        start = self._held.find(OPEN)
        if start >= 0:
            pieces += self._close(start, len(self._held), len(self._held))
        rest = self._held.rstrip() if self._calls else self._held
        self._held = ""
        return [*pieces, rest] if rest else pieces

    def _only_grows(self, text: str) -> bool:
        """Whether the text only adds to an open call, or to white space, so that it can wait.

        It is then joined and looked at once, not with every piece: the work stays linear.
        """
        end = (self._end or self._held[1 - len(CLOSE) :]) + text
        grows = CLOSE not in end if self._open else self._held.isspace() and text.isspace()
        if grows:
            self._growing.append(text)
            self._end = end[1 - len(CLOSE) :]
        return grows

    def _grown(self) -> str:
        """Return all that is held, and begin anew to gather what only adds to it."""
        held = self._held + "".join(self._growing)
        self._growing.clear()
        self._end = ""
        return held

    def _close(self, start: int, end: int, after: int) -> list[Piece]:
        """Take the call between ``start`` and ``end``, or that stretch as text when it is none."""
        call = self._parse(self._held[start + len(OPEN) : end])
        before = self._held[:after] if call is None else self._held[:start].rstrip()
        self._after_call = call is not None
        self._keep(self._held[after:])
        pieces: list[Piece] = [before] if before else []
        return pieces if call is None else [*pieces, call]

    def _keep(self, text: str) -> None:
        self._held = text.lstrip() if self._after_call else text
        self._after_call = self._after_call and not self._held

    def _parse(self, body: str) -> ToolCall | None:
        try:
            call = _calls.decode(body.strip())
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        arguments = bytes(call.arguments)
        if call.name not in self._offered or not arguments.startswith(b"{"):
            return None
        self._calls += 1
        return ToolCall(
            id=f"call_{self._call_id}_{self._calls}",
            function=FunctionCall(call.name, arguments.decode()),
        )


def answer_in(text: str) -> Message:
    """Return the answer that a whole text is where every tool that it names is offered."""
    names = set()
    for part in text.split(OPEN)[1:]:
        with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
            names.add(_calls.decode(part.partition(CLOSE)[0].strip()).name)
    scanner = ToolCallScanner(names, "whole")
    return answer_message([*scanner.feed(text), *scanner.finish()])


def _certain(text: str) -> int:
    """Return the length of ``text`` before what may be the start of an open tag."""
    for length in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if text.endswith(OPEN[:length]):
            return len(text) - length
    return len(text)


def answer_message(pieces: list[Piece]) -> Message:
    """Return the assistant message made of all pieces of an answer."""
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    calls = tuple(piece for piece in pieces if isinstance(piece, ToolCall))
    return Message(role="assistant", content=None if calls and not text else text, tool_calls=calls)
