"""What the audit says of each step that a record takes: one action per outcome.

Ids and verdicts only: what people wrote stays in the events that the ids name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.events import DeadLetter, Decision, Feedback, Reward, Safety
from contracts.findings import Finding
from contracts.topics import AUDIT
from streams.attribution import Joined
from streams.evidence import Evidence
from streams.step import Step
from streams.tally import Fact

MAX_DECISIONS = 500
"""Ids in one record: with the longest ids it stays far below what a broker takes."""


class Trail:
    """Adds the audit records of one worker to its steps, in the order of its chain."""

    def __init__(self, audit: AuditChain) -> None:
        self._audit = audit

    def admitted(self, step: Step, decision: Decision, record: Received) -> None:
        """A decision was read and its window opened."""
        place = {"topic": record.topic.name, "partition": record.partition, "offset": record.offset}
        self._record(step, "decision.admitted", decision.id, detail=place)

    def judged(self, step: Step, safety: Safety) -> None:
        """A decision has its safety features."""
        detail = {
            "safety_id": safety.id,
            "violation": safety.violation,
            "risk": safety.risk,
            "findings": rules_of(safety.findings),
        }
        self._record(step, "safety.judged", safety.decision_id, detail=detail)

    def joined(self, step: Step, decision_id: str, feedback: Feedback) -> None:
        """Feedback is about a decision and came in time."""
        self._record(step, "feedback.joined", decision_id, detail=_named(feedback))

    def dropped(self, step: Step, feedback: Feedback, reason: Joined | str) -> None:
        """Feedback does not count."""
        subject = feedback.decision_id or feedback.session_id
        self._record(step, "feedback.dropped", subject, reason, _named(feedback))

    def failed(self, step: Step, decision: Decision, error: Exception) -> None:
        """The reward could not be computed from the feedback, and was computed without it."""
        self._record(step, "reward.failed", decision.id, type(error).__name__)

    def closed(
        self,
        step: Step,
        evidence: Evidence,
        reward: Reward,
        sample_id: str | None,
        withheld: dict[str, Any] | None,
    ) -> None:
        """What the reward is, first or anew, from which feedback, and for which sample."""
        detail = {
            "revision": reward.revision,
            "reward_id": reward.id,
            "status": reward.status,
            "value": reward.value,
            "policy_version": reward.assignment.policy_version,
            "feedback": [heard.event.id for heard in evidence.heard],
            "sample_id": sample_id,
            "correction_withheld": withheld,
        }
        action = "reward.revised" if reward.revision else "reward.closed"
        self._record(step, action, reward.decision_id, detail=detail)

    def dead_letter(self, step: Step, letter: DeadLetter) -> None:
        """A record was refused."""
        subject = f"{letter.topic}/{letter.partition}/{letter.offset}"
        self._record(step, "dead-letter", subject[-128:], letter.reason, {"id": letter.id})

    def features(self, step: Step, facts: Sequence[Fact], *, written: bool) -> None:
        """The features that follow from these facts were written, or given up."""
        action = "features.written" if written else "features.given-up"
        reason = "" if written else "the store failed; counts go out with the next write"
        ids = list(dict.fromkeys(fact.decision_id for fact in facts))
        for start in range(0, len(ids), MAX_DECISIONS):
            detail = {"decisions": ids[start : start + MAX_DECISIONS]}
            self._record(step, action, step.source, reason, detail)

    def _record(
        self,
        step: Step,
        action: str,
        subject: str,
        reason: str = "",
        detail: dict[str, Any] | None = None,
    ) -> None:
        record, value = self._audit.sealed(action, subject, reason=reason, detail=detail)
        step.send(AUDIT, record, value)


def rules_of(findings: tuple[Finding, ...]) -> list[str]:
    """Return each finding as ``category/rule``."""
    return [f"{finding.category}/{finding.rule}" for finding in findings]


def _named(feedback: Feedback) -> dict[str, str]:
    return {"feedback_id": feedback.id, "kind": feedback.kind}
