"""The versions there are and what became of each: those on disk, and what the log tells of any.

Topics `releases` and `rollouts` are compacted. Where a broker has removed records, only the newest
state of each policy is sure to be there: it names what serves and what can be gone back to, and of
older versions nothing is known but that they lie on disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct

from console.table import table
from contracts.errors import CodecError
from contracts.events import BASE_VERSION, Candidate, Event, Release, Rollout
from contracts.manifest import Manifest
from contracts.settings import Kafka
from contracts.topics import RELEASES, ROLLOUTS
from serving.rollout_inbox import RELEASES_PLACE
from serving.rollout_state import newer

CLIENT_ID = "headrace-releases"
UNKNOWN: Final = "unknown"
NOT_ANNOUNCED = "not announced"
Use = Literal["", "stable", "candidate", "rollback", "waiting", "unknown"]


class VersionRow(Struct, frozen=True, kw_only=True):
    """One version; ``policy`` is empty for the base.

    ``phase`` is the last the rollout controller gave it. Before any it is "waiting", and
    "superseded" when a newer one was taken instead. Where that state is gone it is "served" when
    the version serves or has served, else "unknown". ``use`` is what it is needed for: "rollback"
    when a person may go back to it, "unknown" when nothing tells; empty: for nothing.
    """

    sequence: int
    version: str
    parent: str
    phase: str
    stable: bool
    reason: str
    policy: str = ""
    use: Use = ""
    time: datetime | None = None
    metrics: dict[str, float] = {}


class _Origin(Struct, frozen=True):
    """Where a version stands in the line of its policy, whoever tells it."""

    policy: str
    sequence: int
    parent: str = ""


class _Told(Struct, frozen=True):
    """What the topics tell, by version, and by policy the state that holds.

    ``offsets`` are those of releases; ``whole``: no record has been removed.
    """

    releases: dict[str, Release]
    states: dict[str, Rollout]
    newest: dict[str, Rollout]
    offsets: Mapping[str, int]
    whole: bool


def read_versions(kafka: Kafka, manifests: Mapping[str, Manifest]) -> list[VersionRow]:
    """Return every version in order, the base first; ``manifests`` are of those on disk."""
    from contracts.broker import read_to_end

    events: list[Event] = []
    offsets: dict[str, int] = {}
    places: list[tuple[str, int]] = []
    for record in read_to_end(kafka, (RELEASES, ROLLOUTS), CLIENT_ID):
        places.append((record.topic.name, record.offset))
        try:
            event = record.event()
        except CodecError:
            continue
        events.append(event)
        if isinstance(event, Release):
            offsets[event.version] = record.offset
    return version_rows(events, manifests, offsets, whole=is_whole(places))


def is_whole(places: Iterable[tuple[str, int]]) -> bool:
    """Return whether topics, each of one partition, have every record up to their newest one.

    ``places`` are topic and offset of each record that is there.
    """
    counts: Counter[str] = Counter()
    ends: dict[str, int] = {}
    for topic, offset in places:
        counts[topic] += 1
        ends[topic] = offset + 1
    return all(counts[topic] == end for topic, end in ends.items())


def version_under_test(state: Rollout) -> str:
    """Return the version a rollout state is about: its candidate, or the one just judged."""
    return state.candidate.version if state.candidate is not None else state.judged


def version_rows(
    events: Iterable[Event],
    manifests: Mapping[str, Manifest] | None = None,
    offsets: Mapping[str, int] | None = None,
    *,
    whole: bool = True,
) -> list[VersionRow]:
    """Return the versions that manifests, releases and rollout states tell of.

    ``offsets`` are those of releases, by version; ``whole``: no record is missing in ``events``.
    """
    told = _Told({}, {}, {}, offsets or {}, whole)
    for event in events:
        if isinstance(event, Release):
            told.releases[event.version] = event
        elif isinstance(event, Rollout):
            known = told.newest.get(event.policy)
            if newer(known, event) is event:  # else it is void: another controller has the term
                told.newest[event.policy] = told.states[version_under_test(event)] = event
    origins = _origins(told, manifests or {})
    taken = _taken(told, origins)
    order = sorted(origins, key=lambda one: (origins[one].policy, origins[one].sequence, one))
    return [
        _base_row(told),
        *(_row(told, one, origins[one], taken.get(origins[one].policy, 0)) for one in order),
    ]


def _origins(told: _Told, manifests: Mapping[str, Manifest]) -> dict[str, _Origin]:
    found = {}
    for policy, state in told.newest.items():
        for one in (state.stable, *_others(state)):
            found[one.version] = _Origin(policy, one.sequence)
    for version, manifest in manifests.items():
        if manifest.form != "reward-model":
            found[version] = _Origin(manifest.policy, manifest.sequence, manifest.parent)
    for version, release in told.releases.items():
        found[version] = _Origin(release.policy, release.sequence, release.parent)
    return {version: origin for version, origin in found.items() if version != BASE_VERSION}


def _others(state: Rollout) -> tuple[Candidate, ...]:
    """Return what a state names besides what is stable."""
    return (*((state.candidate,) if state.candidate else ()), *state.history, *state.offered)


def _taken(told: _Told, origins: Mapping[str, _Origin]) -> dict[str, int]:
    """Return by policy the highest number that its controller has taken."""
    found: dict[str, int] = {}
    named = {
        one.version for state in told.newest.values() for one in (state.stable, *_others(state))
    }
    for version in named | told.states.keys():
        if origin := origins.get(version):
            found[origin.policy] = max(found.get(origin.policy, 0), origin.sequence)
    return found


def _base_row(told: _Told) -> VersionRow:
    """The base serves, too, where no controller has said anything yet."""
    stable = {state.stable.version for state in told.newest.values()} or {BASE_VERSION}
    return VersionRow(
        sequence=0,
        version=BASE_VERSION,
        parent="",
        phase="base",
        stable=BASE_VERSION in stable,
        reason="",
        use="stable" if BASE_VERSION in stable else "rollback",
    )


def _row(told: _Told, version: str, origin: _Origin, taken: int) -> VersionRow:
    state, release = told.states.get(version), told.releases.get(version)
    newest = told.newest.get(origin.policy)
    phase = state.phase if state else _phase(told, version, origin, taken)
    return VersionRow(
        sequence=origin.sequence,
        version=version,
        parent=origin.parent,
        phase=phase,
        stable=newest is not None and newest.stable.version == version,
        reason=state.reason if state else "",
        policy=origin.policy,
        use="waiting" if phase == "waiting" else _use(newest, version, origin, taken),
        time=release.time if release else None,
        metrics=release.metrics if release else {},
    )


def _phase(told: _Told, version: str, origin: _Origin, taken: int) -> str:
    """Return what became of a version that no state in the log is about."""
    newest = told.newest.get(origin.policy)
    if version in told.releases and _waits(told, newest, version, origin.sequence > taken):
        return "waiting"
    if newest and version in {one.version for one in (newest.stable, *newest.history)}:
        return "served"
    if not told.whole:
        return UNKNOWN
    return "superseded" if version in told.releases else NOT_ANNOUNCED


def _waits(told: _Told, newest: Rollout | None, version: str, later: bool) -> bool:
    """Return whether the controller has not taken a release yet; its position says it best."""
    read_to = newest.positions.get(RELEASES_PLACE) if newest else None
    if read_to is None or version not in told.offsets:
        return later
    return told.offsets[version] >= read_to


def _use(newest: Rollout | None, version: str, origin: _Origin, taken: int) -> Use:
    if newest is None:
        return UNKNOWN
    if version == newest.stable.version:
        return "stable"
    if newest.candidate is not None and version == newest.candidate.version:
        return "candidate"
    if version in {one.version for one in newest.history}:
        return "rollback"
    return UNKNOWN if origin.sequence > taken else ""


def versions_text(rows: list[VersionRow]) -> str:
    """Return the table for people; versions are cut to 12 characters."""
    heads = ("policy", "sequence", "version", "parent", "phase", "use", "released", "reason")
    return table(
        heads,
        [
            (
                row.policy,
                row.sequence,
                row.version[:12],
                row.parent[:12],
                row.phase,
                row.use,
                row.time.strftime("%H:%M:%S") if row.time else "",
                row.reason,
            )
            for row in rows
        ],
    )
