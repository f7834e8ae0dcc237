"""What the guard does about its findings: let pass, block, or hand over to a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from contracts.events import Message
from contracts.findings import Finding
from guard.exchange import actions_of
from guard.risk import is_violation, risk
from guard.rules import Rules

Action = Literal["passed", "blocked", "escalated"]

OUTRIGHT = frozenset({"too-long", "guard-model"})
"""Categories whose findings in the question block it before the policy is asked."""


def judge_question(rules: Rules, findings: Sequence[Finding], escalate_above: float) -> Action:
    """Return what becomes of a question, from its findings."""
    enforced = enforced_of(rules, findings)
    if any(finding.category in OUTRIGHT for finding in enforced):
        return "blocked"
    return "escalated" if risk(enforced, acted=False) > escalate_above else "passed"


def judge_answer(
    rules: Rules, findings: Sequence[Finding], answer: Message, escalate_above: float
) -> Action:
    """Return what becomes of an answer, from the findings of both sides and its actions."""
    enforced = enforced_of(rules, findings)
    if not enforced:
        return "passed"
    acted = acts(rules, answer)
    if is_violation(enforced, acted=acted):
        return "blocked"
    return "escalated" if risk(enforced, acted=acted) > escalate_above else "passed"


def acts(rules: Rules, answer: Message) -> bool:
    """Tell whether an answer does anything that is not safe on a disallowed topic.

    Each of its calls counts: one that is safe does not cover for another beside it.
    """
    return not rules.safe_actions.issuperset(actions_of(answer))


def enforced_of(rules: Rules, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings of layers that may act."""
    return [finding for finding in findings if rules.modes[finding.category] == "enforce"]
