"""What is written about a served answer: one `Decision`, its audit record, both in one append."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from contracts.audit import AuditChain
from contracts.codec import MAX_VALUE_BYTES, Record, encode, to_json
from contracts.errors import CodecError
from contracts.events import Decision, Feedback, Message, text_of
from contracts.topics import AUDIT, DECISIONS, FEEDBACK
from contracts.tracing import current_trace_headers
from serving.metrics import Metrics
from serving.outbox import Outbox, OutboxFullError

SOURCE = "headrace/gateway"
SHORTEST = 100
"""Bytes below which no message of a decision that is too large is shortened."""

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

        One that is too large for a topic is written without its tokens, and its longest messages
        shortened where that is not enough: it is judged and audited like any other, and nobody
        learns from it. One that cannot be written at all leaves an audit record that says so.
        """
        trace = current_trace_headers()
        try:
            record = _record(decision, trace)
        except CodecError as error:
            self._metrics.count("lost")
            log.error("decision %s is lost: %s", decision.id, error)  # noqa: TRY400 - the message says all
            self.happened("decision.lost", decision.id, _summary(decision) | {"lost": str(error)})
            return
        try:
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
    """Return the record of as much of a decision as fits; CodecError when nothing helps."""
    for each in _ever_smaller(decision):
        try:
            record = encode(DECISIONS, each, source=SOURCE, trace=trace)
        except CodecError as error:
            refusal = error
            if error.reason == "oversized":
                continue
            raise
        if each is not decision:
            log.warning("decision %s is written in part: %s", decision.id, refusal)
        return record
    raise refusal


def _ever_smaller(decision: Decision) -> Iterator[Decision]:
    """Yield a decision whole, without its tokens, and with less and less of its messages."""
    yield decision
    decision = replace(decision, prompt_token_ids=(), token_ids=(), logprobs=())
    yield decision
    limit = MAX_VALUE_BYTES // 2
    while limit >= SHORTEST:
        yield _shortened(decision, limit)
        limit //= 2


def _shortened(decision: Decision, limit: int) -> Decision:
    """Return a decision without its raw text, and no message of it longer than ``limit``."""
    guard = decision.guard
    if guard is not None and guard.drawn is not None:
        guard = replace(guard, drawn=_start_of(guard.drawn, limit))
    return replace(
        decision,
        messages=tuple(_start_of(message, limit) for message in decision.messages),
        answer=_start_of(decision.answer, limit),
        text=f"[left out: {len(decision.text)} characters]" if decision.text else "",
        guard=guard,
    )


def _start_of(message: Message, limit: int) -> Message:
    """Return the message, or the start of its text and how long it was."""
    size = len(to_json(message))
    if size <= limit:
        return message
    start = text_of(message)[:limit]
    return Message(role=message.role, content=f"{start} [shortened: {size} bytes in all]")


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
