"""The chain behind a decision, put together from what the run left behind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from msgspec import Struct

from console.evidence import Evidence, Learned, SpanLine, Version, evidence_on
from contracts.errors import UnavailableError
from contracts.events import (
    BASE_VERSION,
    AuditRecord,
    Decision,
    Event,
    Feedback,
    Reward,
    Safety,
    Sample,
)
from contracts.settings import Kafka, Settings

AnyEvent = TypeVar("AnyEvent", bound=Event)


class Explanation(Struct, frozen=True, kw_only=True):
    """Everything known about one decision. ``action_probability`` is that of the whole answer:
    the product over its tokens, None when the engine gave no log-probabilities. ``unread`` says
    which versions' ledgers are damaged: whether these learned from it is not known."""

    decision: Decision
    action_probability: float | None
    version: Version
    lineage: tuple[str, ...]
    safety: Safety | None
    feedback: tuple[Feedback, ...]
    rewards: tuple[Reward, ...]
    samples: tuple[Sample, ...]
    learned: tuple[Learned, ...]
    paid: tuple[Learned, ...]
    audit: tuple[AuditRecord, ...]
    spans: tuple[SpanLine, ...]
    unread: tuple[str, ...]


def explain_decision(kafka: Kafka, settings: Settings, decision_id: str) -> Explanation:
    """Collect the chain; UnavailableError when the log holds no decision of that id."""
    return explanation(evidence_on(kafka, settings, decision_id), decision_id)


def explanation(evidence: Evidence, decision_id: str) -> Explanation:
    """Put the chain together; UnavailableError when there is no decision of that id."""
    about = evidence.about.get(decision_id, ())
    decision = next(_of(about, Decision), None)
    if decision is None:
        raise UnavailableError(
            f"no decision {decision_id!r} in the log; 'headrace.decision_id' of an answer and the "
            "header X-Headrace-Decision-Id hold the id"
        )
    samples = tuple(_of(about, Sample))
    learned, paid = (
        tuple(entry for sample in samples for entry in found.get(sample.id, ()))
        for found in (evidence.learned, evidence.paid)
    )
    return Explanation(
        decision=decision,
        action_probability=math.exp(sum(decision.logprobs)) if decision.logprobs else None,
        version=_version(evidence.versions, decision.assignment.policy_version),
        lineage=lineage(evidence.versions, decision.assignment.policy_version),
        safety=next(_of(about, Safety), None),
        feedback=tuple(_of(about, Feedback)),
        rewards=tuple(_of(about, Reward)),
        samples=samples,
        learned=learned,
        paid=tuple(sorted(paid, key=lambda entry: entry.sequence)),
        audit=_audit(evidence, decision_id, {entry.version for entry in (*learned, *paid)}),
        spans=tuple(evidence.spans.get(decision.trace_id or "", ())),
        unread=tuple(evidence.unread),
    )


def lineage(versions: Mapping[str, Version], version: str) -> tuple[str, ...]:
    """Return the ancestors of a version, its parent first, as far as their files are there."""
    found: list[str] = []
    while version in versions and len(found) <= len(versions):
        manifest = versions[version].manifest
        if manifest is None:
            break
        version = manifest.parent
        found.append(version)
    return tuple(found)


def _of(events: Iterable[Event], kind: type[AnyEvent]) -> Iterator[AnyEvent]:
    return (event for event in events if isinstance(event, kind))


def _version(versions: Mapping[str, Version], version: str) -> Version:
    if version == BASE_VERSION:
        return Version(version=version, note="the base model, before anything was learned")
    gone = Version(version=version, note="its files are not below this state directory")
    return versions.get(version, gone)


def _audit(evidence: Evidence, decision_id: str, versions: set[str]) -> tuple[AuditRecord, ...]:
    """Return the records on the decision and on what became of the versions that learned it."""
    records = {
        record.id: record
        for subject in (decision_id, *versions)
        for record in _of(evidence.about.get(subject, ()), AuditRecord)
    }
    return tuple(sorted(records.values(), key=lambda one: (one.time, one.producer, one.sequence)))
