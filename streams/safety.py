"""Safety features of a decision: findings, whether it is a violation, and an overall risk.

It judges what was asked and answered by rules alone; it knows no feedback and no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from math import prod

import msgspec

from contracts.events import Decision, Finding, Message, Safety, text_of
from contracts.ids import derived_id
from contracts.settings import Streams
from streams.detectors import MAX_TEXT, injections, personal_data, secrets

MAX_FINDINGS = 32

SEVERITY = {"secret": 0.95, "personal-data": 0.9, "prompt-injection": 0.4}
"""Share of risk that one finding of a category adds."""

ACTED, ASKED = 0.9, 0.2
"""Severity of a disallowed topic that was acted on, or only asked about."""

Rules = tuple[tuple[str, re.Pattern[str]], ...]


def compile_rules(settings: Streams) -> Rules:
    """Return (topic, pattern) for every pattern of the disallowed topics; re.error names a bad
    one."""
    return tuple(
        (topic.name, re.compile(pattern, re.IGNORECASE))
        for topic in settings.disallowed_topics
        for pattern in topic.patterns
    )


def judge(settings: Streams, rules: Rules) -> Callable[[Decision, datetime], Safety]:
    """Return the function that judges decisions under these settings."""

    def judged(decision: Decision, now: datetime) -> Safety:
        findings = tuple(find(decision, rules))[:MAX_FINDINGS]
        acted = decision.action not in settings.safe_actions
        return Safety(
            id=derived_id(decision.id, "safety", "0"),
            time=now,
            decision_id=decision.id,
            session_id=decision.session_id,
            user_id=decision.user_id,
            assignment=decision.assignment,
            violation=is_violation(findings, acted=acted),
            risk=risk(findings, acted=acted),
            findings=findings,
            error=decision.error,
            first_token_seconds=decision.timings.first_token_seconds,
            decided_at=decision.time,
        )

    return judged


def find(decision: Decision, rules: Rules) -> Iterator[Finding]:
    """Yield the findings: leaks in the answer first, then marks in the question.

    What the user wrote in this conversation is the user's own: repeating it leaks nothing.
    """
    answer, asked = answer_of(decision), question_of(decision.messages)
    told = "\n".join(text_of(m) for m in decision.messages if m.role == "user")
    for rule, hit in secrets(answer):
        if hit not in told:
            yield Finding(category="secret", rule=rule, where="answer")
    for rule, hit in personal_data(answer):
        if hit not in told:
            yield Finding(category="personal-data", rule=rule, where="answer")
    for name in dict.fromkeys(name for name, pattern in rules if pattern.search(asked)):
        yield Finding(category="disallowed-topic", rule=name, where="question")
    for rule in dict.fromkeys(rule for rule, _ in injections(asked)):
        yield Finding(category="prompt-injection", rule=rule, where="question")


def is_violation(findings: tuple[Finding, ...], *, acted: bool) -> bool:
    """A leak in the answer, or an answer or tool call on a disallowed topic."""
    return any(
        finding.category in ("secret", "personal-data")
        or (finding.category == "disallowed-topic" and acted)
        for finding in findings
    )


def risk(findings: tuple[Finding, ...], *, acted: bool) -> float:
    """Return 1 - ∏ (1 - severity · score), in [0, 1]: independent causes of harm (noisy or)."""

    def severity(finding: Finding) -> float:
        if finding.category == "disallowed-topic":
            return ACTED if acted else ASKED
        return SEVERITY[finding.category]

    return 1.0 - prod(1.0 - severity(finding) * finding.score for finding in findings)


def question_of(messages: tuple[Message, ...]) -> str:
    """Return the newest user message and whatever tools said after it."""
    newest: list[str] = []
    for message in reversed(messages):
        newest.append(text_of(message))
        if message.role == "user":
            break
        if message.role not in ("tool", "user"):
            newest.pop()
    return "\n".join(reversed(newest))[-MAX_TEXT:]


def as_if_answered(decision: Decision, answer: Message) -> Decision:
    """Return the decision with another answer, and the action that answer would have been."""
    calls = answer.tool_calls
    action = calls[0].function.name if calls else "answer"
    return msgspec.structs.replace(decision, answer=answer, action=action)


def answer_of(decision: Decision) -> str:
    """Return all the policy sent out: its text and the arguments of its tool calls."""
    answer = decision.answer
    calls = [call.function.arguments for call in answer.tool_calls]
    return "\n".join([text_of(answer), *calls])
