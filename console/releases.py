"""The versions the learner released and what became of each, read from the log."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from msgspec import Struct

from console.table import table
from contracts.events import BASE_VERSION, Event, Release, Rollout
from contracts.settings import Kafka
from contracts.topics import RELEASES, ROLLOUTS


class VersionRow(Struct, frozen=True, kw_only=True):
    """One version; ``phase`` is the last the rollout controller gave it, "waiting" before any."""

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


def version_rows(events: Iterable[Event]) -> list[VersionRow]:
    """Return the versions that releases and rollout states tell of."""
    releases: dict[str, Release] = {}
    phases: dict[str, Rollout] = {}
    newest: Rollout | None = None
    for event in events:
        if isinstance(event, Release):
            releases[event.version] = event
        elif isinstance(event, Rollout):
            newest = event if newest is None or event.epoch >= newest.epoch else newest
            if event.candidate is not None:
                phases[event.candidate.version] = event
    stable = newest.stable.version if newest else BASE_VERSION
    base = VersionRow(
        sequence=0,
        version=BASE_VERSION,
        parent="",
        phase="base",
        stable=stable == BASE_VERSION,
        reason="",
    )
    rows = [base]
    for release in sorted(releases.values(), key=lambda found: found.sequence):
        state = phases.get(release.version)
        phase = state.phase if state else "waiting"
        if phase == "idle" or (phase == "canary" and release.version == stable):
            phase = "promoted" if release.version == stable else phase
        rows.append(
            VersionRow(
                sequence=release.sequence,
                version=release.version,
                parent=release.parent,
                phase=phase,
                stable=release.version == stable,
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
