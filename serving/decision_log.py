"""What is written about a served answer: one `Decision`, its audit record, both in one append."""

from __future__ import annotations

import logging
from typing import Any

from msgspec.structs import replace

from contracts.audit import AuditChain
from contracts.codec import Record, encode
from contracts.errors import CodecError
from contracts.events import Decision, Feedback
from contracts.topics import AUDIT, DECISIONS, FEEDBACK
from contracts.tracing import current_trace_headers
from serving.metrics import Metrics
from serving.outbox import Outbox, OutboxFullError

SOURCE = "headrace/gateway"

log = logging.getLogger("headrace.gateway")


class DecisionLog:
    """Puts events into the outbox; call it inside the request's span."""

    def __init__(self, outbox: Outbox, audit: AuditChain, metrics: Metrics) -> None:
        self._outbox = outbox
        self._audit = audit
        self._metrics = metrics
        self.losing = False

    def decision(self, decision: Decision) -> None:
        """Write a decision; one that finds no room is counted as lost, its answer stands.

        One that is too large for a topic is written without its tokens: it is judged and audited
        like any other, and nobody learns from it.
        """
        trace = current_trace_headers()
        try:
            record = _record(decision, trace)
            self._append(record, "decision.served", decision.id, _summary(decision), trace)
            self.losing = False
        except (OutboxFullError, CodecError) as error:
            self._metrics.count("lost")
            if not self.losing:
                log.error("decision %s is lost: %s", decision.id, error)  # noqa: TRY400 - the message says all
            self.losing = isinstance(error, OutboxFullError)

    def feedback(self, feedback: Feedback) -> None:
        """Write feedback; OutboxFullError when there is no room, so that the sender may retry."""
        trace = current_trace_headers()
        detail = {"decision_id": feedback.decision_id, "kind": feedback.kind}
        record = encode(FEEDBACK, feedback, source=SOURCE, trace=trace)
        self._append(record, "feedback.accepted", feedback.id, detail, trace)

    def happened(self, action: str, subject: str, detail: dict[str, Any]) -> None:
        """Write an audit record alone; one that finds no room is counted as lost."""
        try:
            with self._audit.kept(action, subject, detail=detail) as audited:
                trace = current_trace_headers()
                self._outbox.append([encode(AUDIT, audited, source=SOURCE, trace=trace)])
        except (OutboxFullError, CodecError) as error:
            self._metrics.count("lost")
            log.warning("audit record %s of %s is lost: %s", action, subject, error)

    def _append(
        self,
        record: Record,
        action: str,
        subject: str,
        detail: dict[str, Any],
        trace: dict[str, str],
    ) -> None:
        with self._audit.kept(action, subject, detail=detail) as audited:
            self._outbox.append([record, encode(AUDIT, audited, source=SOURCE, trace=trace)])


def _record(decision: Decision, trace: dict[str, str]) -> Record:
    """Return the record of a decision; CodecError when its texts alone are too large."""
    try:
        return encode(DECISIONS, decision, source=SOURCE, trace=trace)
    except CodecError as error:
        if error.reason != "oversized":
            raise
        log.warning("decision %s is written without its tokens: %s", decision.id, error)
    decision = replace(decision, prompt_token_ids=(), token_ids=(), logprobs=())
    return encode(DECISIONS, decision, source=SOURCE, trace=trace)


def _summary(decision: Decision) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "session_id": decision.session_id,
        "user_id": decision.user_id,
        "policy_version": decision.assignment.policy_version,
        "arm": decision.assignment.arm,
        "probability": decision.assignment.probability,
        "rollout_id": decision.assignment.rollout_id,
        "action": decision.action,
        "finish_reason": decision.finish_reason,
        "features": len(decision.features),
        "rung": decision.rung,
        "key": decision.key,
        "error": decision.error,
    }
    if decision.guard is not None and decision.guard.findings:
        found = decision.guard.findings
        summary["guard"] = decision.guard.action
        summary["findings"] = [f"{finding.category}/{finding.rule}" for finding in found]
    return summary
