"""What a run left behind about its decisions: log, ledgers of the versions, spans.

It only reads. To look at one decision, records are picked by its id in their bytes and decoded
afterwards, so that a long log costs little more than its transfer; to look at all, everything is
read once and held in memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from console.releases import UNKNOWN, read_versions
from contracts.errors import CodecError, ManifestError
from contracts.events import AuditRecord, Decision, Event, Sample
from contracts.manifest import MANIFEST_NAME, Manifest, read_manifest, read_pinned
from contracts.settings import Kafka, Settings
from contracts.topics import AUDIT, DECISIONS, FEEDBACK, REWARDS, SAMPLES, Topic
from learner.directory import appeared
from learner.ledger import Outcome, Payment

CLIENT_ID = "headrace-explain"
LEDGER, PAYMENTS = "ledger.jsonl", "payments.jsonl"
ALL_TOPICS = (DECISIONS, FEEDBACK, REWARDS, SAMPLES, AUDIT)


class Version(Struct, frozen=True, kw_only=True):
    """A policy version; ``manifest`` is None for the base and where its files are gone."""

    version: str
    manifest: Manifest | None = None
    note: str = ""


class Learned(Struct, frozen=True, kw_only=True):
    """What a later version did with the decision's sample, a line of its ledger or payments."""

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


class Evidence(Struct, frozen=True, kw_only=True):
    """``about`` maps a decision or a version to the events on it, by time; ``offsets`` a sample to
    its offset; ``learned`` a sample to what became of it, ``paid`` to what was taught of it later;
    ``spans`` a trace id to its spans, by start. ``unread`` says which ledgers are not what they
    were, so that nothing is known of what their versions learned from."""

    versions: Mapping[str, Version]
    about: Mapping[str, Sequence[Event]]
    offsets: Mapping[str, int]
    learned: Mapping[str, Sequence[Learned]]
    paid: Mapping[str, Sequence[Learned]]
    spans: Mapping[str, Sequence[SpanLine]]
    unread: Sequence[str] = ()


class _FromLedgers(NamedTuple):
    """What versions say that they did with samples, by sample, and which of them do not say."""

    learned: dict[str, list[Learned]]
    paid: dict[str, list[Learned]]
    unread: list[str]


def evidence_on(kafka: Kafka, settings: Settings, decision_id: str) -> Evidence:
    """Gather what there is on one decision and on the versions that learned from it."""
    directories = version_directories(settings.state_dir / "versions")
    versions = manifests(directories)
    events = [event for _, event in _records(kafka, ALL_TOPICS, (decision_id,))]
    samples = {event.id for event in events if isinstance(event, Sample)}
    found = _from_ledgers(kafka, directories, versions, samples)
    both = (*found.learned.values(), *found.paid.values())
    learners = {entry.version for entries in both for entry in entries}
    if learners:
        events += [event for _, event in _records(kafka, (AUDIT,), learners)]
    traces = {event.trace_id for event in events if isinstance(event, Decision) and event.trace_id}
    spans = _spans(settings.state_dir / "spans", traces) if traces else {}
    return Evidence(
        versions=versions,
        about=_about(events),
        offsets={},
        learned=found.learned,
        paid=found.paid,
        spans=spans,
        unread=found.unread,
    )


def all_evidence(kafka: Kafka, settings: Settings) -> Evidence:
    """Gather what there is on every decision of the log."""
    directories = version_directories(settings.state_dir / "versions")
    versions = manifests(directories)
    records = list(_records(kafka, ALL_TOPICS))
    offsets: dict[str, int] = {}
    for offset, event in records:
        if isinstance(event, Sample):
            offsets.setdefault(event.id, offset)
    found = _from_ledgers(kafka, directories, versions)
    return Evidence(
        versions=versions,
        about=_about(event for _, event in records),
        offsets=offsets,
        learned=found.learned,
        paid=found.paid,
        spans=_spans(settings.state_dir / "spans"),
        unread=found.unread,
    )


def version_directories(versions: Path) -> dict[str, Path]:
    """Return version id to directory of every finished version below ``versions``."""
    return {
        path.name: path
        for policy in versions.glob("*")
        for path in appeared(policy)
        if (path / MANIFEST_NAME).exists()
    }


def ledger_lines(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of a version's ledger, `learner.ledger.Outcome`: one per sample read since
    its parent. ManifestError when it is not the one that the manifest has the hash of."""
    return _lines(directory, LEDGER, Outcome)


def payment_lines(directory: Path) -> list[dict[str, Any]]:
    """Return what a version taught of earlier samples, whose reward changed:
    `learner.ledger.Payment`. ManifestError as `ledger_lines`."""
    return _lines(directory, PAYMENTS, Payment)


def _lines(directory: Path, name: str, kind: type[Outcome | Payment]) -> list[dict[str, Any]]:
    _, manifest = read_manifest(directory)
    if name not in manifest.files:
        return []
    lines = read_pinned(directory, manifest, name).splitlines()
    try:
        found = [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
        for line in found:
            msgspec.convert(line, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{directory / name} is not what a learner writes: {error}") from error
    return found


def _records(
    kafka: Kafka, topics: tuple[Topic, ...], texts: Collection[str] = ()
) -> Iterator[tuple[int, Event]]:
    """Yield (offset, event) of the topics' valid records; with ``texts`` of those whose bytes hold
    one of them."""
    from contracts.broker import read_to_end

    wanted = [text.encode() for text in texts]
    for record in read_to_end(kafka, topics, CLIENT_ID):
        value = record.value
        if value is None or (wanted and not any(text in value for text in wanted)):
            continue
        try:
            yield record.offset, record.event()
        except CodecError:
            continue


def _about(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Index events by what they are about. Ids are unique within a type: feedback has its own."""
    found: dict[str, dict[tuple[str, str], Event]] = defaultdict(dict)
    for event in events:
        for subject in _subjects(event):
            found[subject].setdefault((event.TYPE, event.id), event)
    return {
        subject: sorted(known.values(), key=lambda event: (event.time, event.id))
        for subject, known in found.items()
    }


def _subjects(event: Event) -> Iterator[str]:
    """Yield what an event is about; repetitions do not matter."""
    if isinstance(event, Decision):
        yield event.id
    elif isinstance(event, AuditRecord):
        yield event.subject
        yield from filter(None, (event.detail.get("decision_id"),))
        yield from event.detail.get("decisions", ())
    elif decision_id := getattr(event, "decision_id", None):
        yield decision_id


def manifests(directories: Mapping[str, Path]) -> dict[str, Version]:
    """Return every version with its manifest, or with what is wrong with it."""
    found = {}
    for version, directory in directories.items():
        try:
            found[version] = Version(version=version, manifest=read_manifest(directory)[1])
        except ManifestError as error:
            found[version] = Version(version=version, note=str(error))
    return found


def readable(versions: Mapping[str, Version]) -> dict[str, Manifest]:
    """Return the manifests that could be read, by version."""
    return {name: one.manifest for name, one in versions.items() if one.manifest}


def _from_ledgers(
    kafka: Kafka,
    directories: Mapping[str, Path],
    versions: Mapping[str, Version],
    samples: Collection[str] | None = None,
) -> _FromLedgers:
    """Return what versions did with these samples, or with all, when they read them and later."""
    told = _FromLedgers({}, {}, [])
    if samples is not None and not samples:
        return told
    phases = {row.version: row.phase for row in read_versions(kafka, readable(versions))}
    for version, manifest in readable(versions).items():
        for found, lines in ((told.learned, ledger_lines), (told.paid, payment_lines)):
            try:
                written = lines(directories[version])
            except ManifestError as error:
                told.unread.append(str(error))
                continue
            for line in written:
                sample = line["sample_id"]
                if samples is None or sample in samples:
                    found.setdefault(sample, []).append(
                        Learned(
                            version=version,
                            sequence=manifest.sequence,
                            phase=phases.get(version, UNKNOWN),
                            outcome=line,
                        )
                    )
    told.unread.extend(one.note for one in versions.values() if one.note)
    return told


def _spans(directory: Path, traces: Collection[str] | None = None) -> dict[str, list[SpanLine]]:
    """Return the spans of these traces, or of all, from the local files."""
    found: dict[str, list[SpanLine]] = defaultdict(list)
    for path in sorted(directory.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if traces is not None and not any(trace in line for trace in traces):
                    continue
                if (span := _span(path.stem, line)) is not None:
                    found[span[0]].append(span[1])
    return {trace: sorted(spans, key=lambda span: span.start) for trace, spans in found.items()}


def _span(process: str, line: str) -> tuple[str, SpanLine] | None:
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
