"""One streamed answer under the guard: pieces of the engine in, deltas that may leave out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from contracts.events import Message, ToolCall, text_of
from contracts.tool_calls import Piece, answer_message
from guard.hold_back import HeldBack
from guard.layers import answered_by, check_answer
from guard.verdict import judge_answer
from serving.chat_request import ChatRequest
from serving.guarding import Guard, Question, Reply, check_drawn

HOLD_BACK = "hold-back"
"""The layer of a report under which the time spent on the chunks of a stream stands."""


class GuardedStream:
    """What was drawn so far, what has left of it, and whether the guard stopped it.

    On a disallowed topic words and calls wait for the end of the answer: a safe call may follow
    words, one that is not may follow the safe one, and all of them decide together.
    """

    def __init__(self, guard: Guard, question: Question, chat: ChatRequest) -> None:
        self._guard = guard
        self._question = question
        self._chat = chat
        self._waits = question.on_disallowed_topic and (
            guard.rules.modes["disallowed-topic"] == "enforce"
        )
        self._held = HeldBack(guard.rules, question.asked.told)
        self._drawn: list[Piece] = []
        self._waiting: list[Piece] = []
        self._left: list[Piece] = []
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a finding was made, so that nothing more of the answer leaves."""
        return self._stopped or self._held.found

    def feed(self, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
        """Take pieces of the answer; return the deltas that may leave."""
        leaving: list[Piece] = []
        for piece in pieces:
            self._drawn.append(piece)
            if self.stopped:
                continue
            if isinstance(piece, str):
                leaving.append(self._held.feed(piece))
            elif self._may_call(piece):
                leaving.append(piece)
            else:
                self._stopped = True
        if self._waits:
            self._waiting += leaving
            return []
        return self._leave(leaving)

    def finish(self, pieces: Iterable[Piece]) -> tuple[Reply, list[dict[str, Any]]]:
        """Take the last pieces; return what left in the end, and the deltas still to be sent."""
        deltas = self.feed(pieces)
        rest = self._held.finish()
        drawn = answer_message(self._drawn)
        reply = check_drawn(self._guard, self._question, self._chat, drawn, found=self.stopped)
        report = reply.report
        report.layer_seconds[HOLD_BACK] = self._held.seconds
        if report.action == "passed":
            return reply, deltas + self._leave([*self._waiting, rest])
        between = "\n" if any(isinstance(piece, str) for piece in self._left) else ""
        said = text_of(reply.message)
        deltas += self._leave([between + said if said else "", *reply.message.tool_calls])
        left = answer_message(self._left)
        return Reply(left, reply.finish_reason, report), deltas

    def _may_call(self, call: ToolCall) -> bool:
        """Whether a call may leave, judged with what was found in the question."""
        rules = self._guard.rules
        alone = Message(role="assistant", tool_calls=(call,))
        findings = check_answer(rules, answered_by(alone, self._question.asked)).findings
        drawn = answer_message(self._drawn)
        limit = self._guard.settings.escalate_above
        return judge_answer(rules, findings + self._question.findings, drawn, limit) == "passed"

    def _leave(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        before = sum(isinstance(piece, ToolCall) for piece in self._left)
        kept = [piece for piece in pieces if piece]
        self._left += kept
        return deltas_of(kept, first=before)


def deltas_of(pieces: Iterable[Piece], first: int = 0) -> list[dict[str, Any]]:
    """Return the deltas of pieces in the OpenAI form; ``first`` is the index of the first call."""
    deltas: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, ToolCall):
            deltas.append({"tool_calls": [{"index": first, **msgspec.to_builtins(piece)}]})
            first += 1
        elif piece:
            deltas.append({"content": piece})
    return deltas


def pieces_of(message: Message) -> list[Piece]:
    """Return a message as pieces: its text and its calls."""
    return [text_of(message), *message.tool_calls]
