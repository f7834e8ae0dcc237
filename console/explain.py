"""The chain behind one decision, put together from the event log, the versions and the spans.

It only reads. Records are picked by the decision's id in their bytes and decoded afterwards, so
that a long log costs little more than its transfer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from console.releases import read_versions
from contracts.errors import CodecError, ManifestError, UnavailableError
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
from contracts.manifest import Manifest, read_manifest
from contracts.settings import Kafka, Settings
from contracts.topics import AUDIT, DECISIONS, FEEDBACK, REWARDS, SAMPLES

CLIENT_ID = "headrace-explain"
LEDGER = "ledger.jsonl"

AnyEvent = TypeVar("AnyEvent", bound=Event)


class Version(Struct, frozen=True, kw_only=True):
    """A policy version; ``manifest`` is None for the base and where its files are gone."""

    version: str
    manifest: Manifest | None = None
    note: str = ""


class Learned(Struct, frozen=True, kw_only=True):
    """What a later version did with the decision's sample, a line of that version's ledger."""

    version: str
    sequence: int
    phase: str
    outcome: dict[str, Any]


class SpanLine(Struct, frozen=True, kw_only=True):
    """One span of the decision's trace."""

    process: str
    name: str
    start: str
    seconds: float
    span_id: str
    parent_id: str | None


class Explanation(Struct, frozen=True, kw_only=True):
    """Everything known about one decision. ``action_probability`` is that of the whole answer:
    the product over its tokens, None when the engine gave no log-probabilities."""

    decision: Decision
    action_probability: float | None
    version: Version
    lineage: tuple[str, ...]
    safety: Safety | None
    feedback: tuple[Feedback, ...]
    rewards: tuple[Reward, ...]
    samples: tuple[Sample, ...]
    learned: tuple[Learned, ...]
    audit: tuple[AuditRecord, ...]
    spans: tuple[SpanLine, ...]


def explain_decision(kafka: Kafka, settings: Settings, decision_id: str) -> Explanation:
    """Collect the chain; UnavailableError when the log holds no decision of that id."""
    about = _events_about(kafka, decision_id)
    decisions = [d for d in _of(about, Decision) if d.id == decision_id]
    if not decisions:
        raise UnavailableError(
            f"no decision {decision_id!r} in the log; 'headrace.decision_id' of an answer and the "
            "header X-Headrace-Decision-Id hold the id"
        )
    decision = decisions[0]
    samples = tuple(s for s in _of(about, Sample) if s.decision_id == decision_id)
    versions = settings.state_dir / "versions"
    learned = tuple(_learned(kafka, versions, {sample.id for sample in samples}))
    directories = version_directories(versions)
    return Explanation(
        decision=decision,
        action_probability=math.exp(sum(decision.logprobs)) if decision.logprobs else None,
        version=_version(directories, decision.assignment.policy_version),
        lineage=lineage(directories, decision.assignment.policy_version),
        safety=next((s for s in _of(about, Safety) if s.decision_id == decision_id), None),
        feedback=tuple(f for f in _of(about, Feedback) if f.decision_id == decision_id),
        rewards=tuple(r for r in _of(about, Reward) if r.decision_id == decision_id),
        samples=samples,
        learned=learned,
        audit=_audit(about, kafka, {entry.version for entry in learned}),
        spans=tuple(_spans(settings.state_dir / "spans", decision.trace_id)),
    )


def version_directories(versions: Path) -> dict[str, Path]:
    """Return version id to directory of every version below ``versions``."""
    return {path.parent.name: path.parent for path in versions.glob("*/*/manifest.json")}


def lineage(directories: dict[str, Path], version: str) -> tuple[str, ...]:
    """Return the ancestors of a version, its parent first, as far as their files are there."""
    found: list[str] = []
    while version in directories and len(found) < 10_000:
        try:
            version = read_manifest(directories[version])[1].parent
        except ManifestError:
            break
        found.append(version)
    return tuple(found)


def _events_about(kafka: Kafka, text: str) -> list[Event]:
    """Return the events whose bytes hold ``text``, each id once."""
    from contracts.broker import read_to_end

    wanted = text.encode()
    found: dict[str, Event] = {}
    for record in read_to_end(kafka, (DECISIONS, FEEDBACK, REWARDS, SAMPLES, AUDIT), CLIENT_ID):
        if record.value is not None and wanted in record.value:
            try:
                event = record.event()
            except CodecError:
                continue
            found.setdefault(event.id, event)
    return sorted(found.values(), key=lambda event: (event.time, event.id))


def _of(events: Iterable[Event], kind: type[AnyEvent]) -> Iterator[AnyEvent]:
    return (event for event in events if isinstance(event, kind))


def _version(directories: dict[str, Path], version: str) -> Version:
    if version == BASE_VERSION:
        return Version(version=version, note="the base model, before anything was learned")
    if version not in directories:
        return Version(version=version, note="its files are not below this state directory")
    try:
        return Version(version=version, manifest=read_manifest(directories[version])[1])
    except ManifestError as error:
        return Version(version=version, note=str(error))


def _learned(kafka: Kafka, versions: Path, sample_ids: set[str]) -> Iterator[Learned]:
    if not sample_ids:
        return
    phases = _phases(kafka)
    for version, directory in version_directories(versions).items():
        for line in ledger_lines(directory):
            if sample_ids.intersection(str(value) for value in line.values()):
                try:
                    sequence = read_manifest(directory)[1].sequence
                except ManifestError:
                    sequence = 0
                phase = phases.get(version, "not announced")
                yield Learned(version=version, sequence=sequence, phase=phase, outcome=line)


def ledger_lines(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a version's ledger: one per sample read since its parent."""
    path = directory / LEDGER
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())


def _phases(kafka: Kafka) -> dict[str, str]:
    return {row.version: row.phase for row in read_versions(kafka)}


def _audit(about: list[Event], kafka: Kafka, versions: set[str]) -> tuple[AuditRecord, ...]:
    """Return the records on the decision and on what became of the versions that learned it."""
    found = {record.id: record for record in _of(about, AuditRecord)}
    for version in sorted(versions):
        for event in _events_about(kafka, version):
            if isinstance(event, AuditRecord) and event.subject == version:
                found[event.id] = event
    return tuple(sorted(found.values(), key=lambda one: (one.time, one.producer, one.sequence)))


def _spans(directory: Path, trace_id: str | None) -> list[SpanLine]:
    if trace_id is None or not directory.exists():
        return []
    found = []
    for path in sorted(directory.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            found += [_span(path.stem, line) for line in lines if f"0x{trace_id}" in line]
    own = [span for span in found if span is not None and span[0] == trace_id]
    return [line for _, line in sorted(own, key=lambda pair: pair[1].start)]


def _span(process: str, line: str) -> tuple[str, SpanLine] | None:
    from datetime import datetime

    try:
        span = json.loads(line)
        start = datetime.fromisoformat(span["start_time"])
        seconds = (datetime.fromisoformat(span["end_time"]) - start).total_seconds()
        parent = span.get("parent_id")
        return str(span["context"]["trace_id"]).removeprefix("0x"), SpanLine(
            process=process,
            name=span["name"],
            start=span["start_time"],
            seconds=seconds,
            span_id=str(span["context"]["span_id"]).removeprefix("0x"),
            parent_id=str(parent).removeprefix("0x") if parent else None,
        )
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None  # the line is being written at this moment
