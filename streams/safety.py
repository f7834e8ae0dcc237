"""Safety features of a decision: findings, whether it is a violation, and an overall risk.

The rules are the guard's own, whatever its layers may do: what the guard kept back is judged as
the policy drew it. No feedback and no model is known here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import islice

import msgspec

from contracts.events import Decision, Message, Safety
from contracts.findings import Finding
from contracts.ids import derived_id
from guard.exchange import action_of
from guard.layers import MAX_FINDINGS, answered_by, asked_in, check_answer, check_question
from guard.risk import is_violation, risk
from guard.rules import Rules


def judge(rules: Rules) -> Callable[[Decision, datetime], Safety]:
    """Return the function that judges decisions under these rules."""

    def judged(decision: Decision, now: datetime) -> Safety:
        findings = find(decision, rules)
        acted = not kept_from_policy(decision) and _acts(decision, rules)
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
            answer_seconds=None if decision.streamed else decision.timings.total_seconds,
            decided_at=decision.time,
        )

    return judged


def find(decision: Decision, rules: Rules) -> tuple[Finding, ...]:
    """Return the findings: those of the answer first, then marks in the question.

    What a guard model found when the question came is taken over: it is not asked again.
    """
    asked = asked_in(rules, decision.messages)
    answered = answered_by(chosen_answer(decision), asked)
    findings = check_answer(rules, answered, everything=True).findings
    findings += check_question(rules, asked, everything=True).findings
    if decision.guard is not None:
        named = (f for f in decision.guard.findings if f.category == "guard-model")
        findings += tuple(islice(named, MAX_FINDINGS))
    return findings


def _acts(decision: Decision, rules: Rules) -> bool:
    """Whether the policy's choice is unsafe on a disallowed topic: its action, or any call."""
    called = {call.function.name for call in chosen_answer(decision).tool_calls}
    return not rules.safe_actions.issuperset(called | {chosen_action(decision)})


def kept_from_policy(decision: Decision) -> bool:
    """Whether the guard answered the question itself, so that no version chose anything."""
    return replaced_by_guard(decision) and chosen_answer(decision) is decision.answer


def replaced_by_guard(decision: Decision) -> bool:
    """Whether something else left than what the policy chose."""
    return decision.guard is not None and decision.guard.action != "passed"


def chosen_answer(decision: Decision) -> Message:
    """Return the answer that the policy chose, whether or not it left."""
    drawn = decision.guard.drawn if decision.guard is not None else None
    return drawn if drawn is not None else decision.answer


def chosen_action(decision: Decision) -> str:
    """Return the action that the policy chose, whether or not it left."""
    if decision.guard is not None and decision.guard.drawn is not None:
        return action_of(decision.guard.drawn)
    return decision.action


def as_if_answered(decision: Decision, answer: Message) -> Decision:
    """Return the decision with another answer, and the action that answer would have been."""
    return msgspec.structs.replace(decision, answer=answer, action=action_of(answer), guard=None)
