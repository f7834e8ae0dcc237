"""The versions the learner released and what became of each, read from the log."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from msgspec import Struct

from console.table import table
from contracts.events import BASE_VERSION, Event, Release, Rollout
from contracts.settings import Kafka
from contracts.topics import RELEASES, ROLLOUTS
from serving.rollout_state import newer


class VersionRow(Struct, frozen=True, kw_only=True):
    """One version; ``phase`` is the last the rollout controller gave it, "waiting" before any and
    "superseded" when a newer one was taken instead."""

    sequence: int
    version: str
    parent: str
    phase: str
    stable: bool
    reason: str
    time: datetime | None = None
    metrics: dict[str, float] = {}


def read_versions(kafka: Kafka) -> list[VersionRow]:
    """Return every version in order, the base first."""
    from contracts.broker import events_to_end

    events = events_to_end(kafka, (RELEASES, ROLLOUTS), "headrace-releases")
    return version_rows(event for _, event in events)


def version_under_test(state: Rollout) -> str:
    """Return the version a rollout state is about: its candidate, or the one just judged."""
    return state.candidate.version if state.candidate is not None else state.judged


def version_rows(events: Iterable[Event]) -> list[VersionRow]:
    """Return the versions that releases and rollout states tell of."""
    releases: dict[str, Release] = {}
    states: dict[str, Rollout] = {}
    newest: dict[str, Rollout] = {}
    for event in events:
        if isinstance(event, Release):
            releases[event.version] = event
        elif isinstance(event, Rollout):
            known = newest.get(event.policy)
            if newer(known, event) is event:  # else it is void: another controller has the term
                newest[event.policy] = states[version_under_test(event)] = event
    stable = {state.stable.version for state in newest.values()} or {BASE_VERSION}
    rows = [
        VersionRow(
            sequence=0,
            version=BASE_VERSION,
            parent="",
            phase="base",
            stable=BASE_VERSION in stable,
            reason="",
        )
    ]
    tested = max((releases[v].sequence for v in states if v in releases), default=0)
    for release in sorted(releases.values(), key=lambda found: found.sequence):
        state = states.get(release.version)
        untested = "superseded" if release.sequence < tested else "waiting"
        rows.append(
            VersionRow(
                sequence=release.sequence,
                version=release.version,
                parent=release.parent,
                phase=state.phase if state else untested,
                stable=release.version in stable,
                reason=state.reason if state else "",
                time=release.time,
                metrics=release.metrics,
            )
        )
    return rows


def versions_text(rows: list[VersionRow]) -> str:
    """Return the table for people; versions are cut to 12 characters."""
    heads = ("sequence", "version", "parent", "phase", "stable", "released", "reason")
    return table(
        heads,
        [
            (
                row.sequence,
                row.version[:12],
                row.parent[:12],
                row.phase,
                "yes" if row.stable else "",
                row.time.strftime("%H:%M:%S") if row.time else "",
                row.reason,
            )
            for row in rows
        ],
    )
