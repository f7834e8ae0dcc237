"""What happened to a decision, for the feature store: opened, closed with its reward, revised."""

from __future__ import annotations

from msgspec.structs import replace

from contracts.codec import to_json
from guard.topics import OTHER
from streams.attribution import Attribution
from streams.safety import chosen_action
from streams.session import Turn
from streams.signals import ESCALATE
from streams.step import Revision
from streams.tally import Fact

MAX_SECONDS = 1e6
"""Seconds counted of one answer: sums stay finite, since JSON has no infinity to read back."""


def opened_fact(partition: int, turn: Turn) -> Fact:
    """Return that a decision was read and judged."""
    decision, safety, action = turn.decision, turn.safety, chosen_action(turn.decision)
    return Fact(
        stage="opened",
        partition=partition,
        offset=turn.offset,
        decision_id=decision.id,
        user_id=decision.user_id,
        session_id=decision.session_id,
        policy_version=decision.assignment.policy_version,
        action=action,
        risk=safety.risk,
        violation=safety.violation,
        findings=to_json([(f.category, f.rule, f.score) for f in safety.findings]).decode(),
        time=turn.decided_at,
        decided_at=turn.decided_at,
        dated=decision.time,
        topic=decision.topic or OTHER,
        tokens=len(decision.prompt_token_ids) + len(decision.token_ids),
        seconds=min(max(0.0, decision.timings.total_seconds), MAX_SECONDS),
        escalated=action == ESCALATE,
        trace=turn.trace,
    )


def closed_fact(number: int, partition: Attribution, turn: Turn) -> Fact:
    """Return that a decision has its reward and will not be read again."""
    session = partition.sessions[turn.decision.session_id]
    index = session.indexed(number)
    return replace(
        opened_fact(number, turn),
        stage="closed",
        time=session.newest_time(turn),
        status=turn.status,
        revision=turn.revision,
        figures=turn.figures,
        index=to_json(index).decode(),
    )


def revised_fact(number: int, partition: Attribution, revision: Revision) -> Fact:
    """Return that a reward was sent anew after the decision had been counted."""
    return replace(
        closed_fact(number, partition, revision.turn),
        stage="revised",
        figures=revision.after,
        before=revision.before,
    )
