"""The guard at work on one request: its question, its answer, and what is said instead."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from contracts.events import FunctionCall, GuardReport, Message, ToolCall
from contracts.findings import Finding
from contracts.settings import Settings
from contracts.settings.guard import Guard as GuardSettings
from guard.exchange import action_of
from guard.layers import Asked, answered_by, asked_in, check_answer, check_question
from guard.risk import risk
from guard.rules import Rules, compile_rules
from guard.verdict import Action, acts, judge_answer, judge_question
from serving.chat_request import ChatRequest
from serving.rungs import least_arguments

REFUSE, ESCALATE = "refuse", "escalate"
"""Actions of a decision in which the guard spoke."""
CONTENT_FILTER = "content_filter"
"""Finish reason of an answer that the guard kept back, as in the OpenAI API."""


class Guard(Struct, frozen=True):
    """The rules and what is done about findings; made once per process."""

    rules: Rules
    settings: GuardSettings

    @classmethod
    def of(cls, settings: Settings) -> Guard:
        """Compile the guard of the settings; SettingsError names a bad rule."""
        return cls(compile_rules(settings), settings.guard)


class Question(Struct, frozen=True, kw_only=True):
    """A question that was checked: what was found, what becomes of it, what was asked."""

    action: Action
    asked: Asked
    findings: tuple[Finding, ...] = ()
    seconds: dict[str, float] = {}

    @property
    def on_disallowed_topic(self) -> bool:
        """Whether only the action decides if the answer may leave."""
        return any(finding.category == "disallowed-topic" for finding in self.findings)


class Reply(Struct, frozen=True):
    """What leaves: the message, its finish reason (None: the policy's own), and the report."""

    message: Message
    finish_reason: str | None
    report: GuardReport


def check_asked(guard: Guard, chat: ChatRequest) -> Question:
    """Check the question of a request."""
    asked = asked_in(guard.rules, chat.messages)
    checked = check_question(guard.rules, asked)
    return Question(
        action=judge_question(guard.rules, checked.findings, guard.settings.escalate_above),
        asked=asked,
        findings=checked.findings,
        seconds=checked.seconds,
    )


def reply_to_question(guard: Guard, question: Question, chat: ChatRequest) -> Reply:
    """Return what is answered to a question that the policy is not to see."""
    report = GuardReport(
        action=question.action,
        where="question",
        risk=risk(question.findings, acted=False),
        findings=question.findings,
        layer_seconds=question.seconds,
    )
    message, reason = _instead(guard, question.action, chat)
    return Reply(message, reason, report)


def check_drawn(
    guard: Guard, question: Question, chat: ChatRequest, drawn: Message, *, found: bool = False
) -> Reply:
    """Return what leaves in the place of a drawn answer: itself, or what the guard says.

    ``found``: a part of it was kept back already, so that it may not pass.
    """
    checked = check_answer(guard.rules, answered_by(drawn, question.asked))
    findings = checked.findings + question.findings
    verdict = judge_answer(guard.rules, findings, drawn, guard.settings.escalate_above)
    if found and verdict == "passed":
        verdict = "blocked"
    report = GuardReport(
        action=verdict,
        where=None if verdict == "passed" else "answer",
        risk=risk(findings, acted=acts(guard.rules, drawn)),
        findings=findings,
        layer_seconds=checked.seconds | question.seconds,
        drawn=None if verdict == "passed" else drawn,
    )
    if verdict == "passed":
        return Reply(drawn, None, report)
    message, reason = _instead(guard, verdict, chat)
    return Reply(message, reason, report)


def action_taken(message: Message, report: GuardReport | None) -> str:
    """Return the action of what left: the guard refuses or escalates by words, too."""
    if report is None or report.action == "passed":
        return action_of(message)
    return REFUSE if report.action == "blocked" else ESCALATE


def _instead(guard: Guard, verdict: Action, chat: ChatRequest) -> tuple[Message, str]:
    if verdict == "blocked":
        return _says(guard.settings.refusal), CONTENT_FILTER
    for tool in chat.tools:
        if tool["function"]["name"] == ESCALATE:
            schema = tool["function"].get("parameters") or {}
            arguments = least_arguments(schema, guard.settings.escalation)
            if arguments is not None:
                made = FunctionCall(ESCALATE, msgspec.json.encode(arguments).decode())
                call = ToolCall(id="call_guard_1", function=made)
                return Message(role="assistant", tool_calls=(call,)), "tool_calls"
    return _says(guard.settings.escalation), CONTENT_FILTER


def _says(text: str) -> Message:
    return Message(role="assistant", content=text)
