"""The figures of a run, computed from its event log and its versions' ledgers.

Plain arithmetic over events: it knows nothing of brokers, engines or the simulator.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from console.releases import VersionRow, version_rows
from contracts.events import (
    BASE_VERSION,
    RULE_VERSION,
    DeadLetter,
    Decision,
    Event,
    Release,
    Reward,
    Rollout,
    Safety,
    Sample,
)
from serving.rollout_state import newer

Ledgers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Version id to the lines of its ledger."""


class Quantiles(Struct, frozen=True, kw_only=True):
    """Median and 95th percentile of ``count`` values, of which so many are ``finite``; None where
    there is none, or no finite one at that place."""

    count: int
    finite: int
    p50: float | None
    p95: float | None


class VersionFigures(Struct, frozen=True, kw_only=True):
    """One version of the run and how much it was used."""

    sequence: int
    version: str
    parent: str
    phase: str
    reason: str
    decisions: int
    samples: int


class RunFigures(Struct, frozen=True, kw_only=True):
    """What the log of a run shows. ``samples_learned`` counts ledger lines with outcome "used";
    each contributed once exactly when it equals ``distinct_samples_learned``. ``versions_served``
    are those that were learned."""

    decisions_logged: int
    duplicate_decisions: int
    rewards: int
    rewards_final: int
    samples: int
    samples_learned: int
    distinct_samples_learned: int
    releases: int
    promoted: int
    rolled_back: int
    refused: int
    versions_served: int
    dead_letters: int
    freshness_seconds: Quantiles
    versions: tuple[VersionFigures, ...]


class RunLog(Struct, frozen=True, kw_only=True):
    """The events of a run, each id once, in the order they were read."""

    decisions: tuple[Decision, ...]
    safety: tuple[Safety, ...]
    rewards: tuple[Reward, ...]
    samples: tuple[Sample, ...]
    releases: tuple[Release, ...]
    rollouts: tuple[Rollout, ...]
    dead_letters: tuple[DeadLetter, ...]
    repeated: Mapping[str, int]


def run_log(events: Iterable[Event]) -> RunLog:
    """Sort events by kind and drop repeated ids, counting them by type."""
    seen: set[str] = set()
    kinds: dict[type[Event], list[Any]] = {}
    repeated: Counter[str] = Counter()
    for event in events:
        if event.id in seen:
            repeated[event.TYPE] += 1
            continue
        seen.add(event.id)
        kinds.setdefault(type(event), []).append(event)
    return RunLog(
        decisions=tuple(e for e in kinds.get(Decision, ()) if e.assignment.arm != "shadow"),
        safety=tuple(e for e in kinds.get(Safety, ()) if e.assignment.arm != "shadow"),
        rewards=tuple(kinds.get(Reward, ())),
        samples=tuple(kinds.get(Sample, ())),
        releases=tuple(kinds.get(Release, ())),
        rollouts=tuple(kinds.get(Rollout, ())),
        dead_letters=tuple(kinds.get(DeadLetter, ())),
        repeated=dict(repeated),
    )


def run_figures(log: RunLog, ledgers: Ledgers) -> RunFigures:
    """Compute everything the log and the ledgers tell."""
    learned = [line["sample_id"] for lines in ledgers.values() for line in lines if _used(line)]
    rows = version_rows([*log.releases, *log.rollouts])
    phases = Counter(row.phase for row in rows)
    served = Counter(decision.assignment.policy_version for decision in log.decisions)
    return RunFigures(
        decisions_logged=len(log.decisions),
        duplicate_decisions=log.repeated.get(Decision.TYPE, 0),
        rewards=len({reward.decision_id for reward in log.rewards}),
        rewards_final=len({r.decision_id for r in log.rewards if r.status == "final"}),
        samples=len(log.samples),
        samples_learned=len(learned),
        distinct_samples_learned=len(set(learned)),
        releases=len(log.releases),
        promoted=phases["promoted"],
        rolled_back=phases["rolled-back"],
        refused=phases["refused"],
        versions_served=len(served.keys() - {BASE_VERSION, RULE_VERSION}),
        dead_letters=len(log.dead_letters),
        freshness_seconds=quantiles(freshness(log, ledgers)),
        versions=tuple(_version(row, served, ledgers) for row in rows),
    )


def freshness(log: RunLog, ledgers: Ledgers) -> list[float]:
    """Return, per sample used, the seconds from its newest feedback to the first answer served by
    weights trained on it: by the version it was learned for, or by a descendant of that one.

    Infinite where these served nothing: left out, what never came would make the rest look soon.
    """
    children = {release.parent: release.version for release in log.releases}
    first_served: dict[str, datetime] = {}
    for decision in log.decisions:
        version = decision.assignment.policy_version
        if version not in first_served or decision.time < first_served[version]:
            first_served[version] = decision.time
    samples = {sample.id: sample for sample in log.samples}
    found = []
    for version, lines in ledgers.items():
        served = _first_of_line(version, children, first_served)
        for line in lines:
            sample = samples.get(line["sample_id"])
            if sample is not None and _used(line):
                age = served - sample.feedback_time if served else None
                found.append(age.total_seconds() if age else math.inf)
    return found


def quantiles(values: Sequence[float]) -> Quantiles:
    """Return the median and the 95th percentile, interpolated between neighbours.

    None where there is no value, or an infinite one at that place.
    """
    ordered = sorted(values)

    def at(share: float) -> float | None:
        if not ordered:
            return None
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        beyond = (ordered[high] - ordered[low]) * (place - low) if place > low else 0.0
        found = ordered[low] + beyond
        return found if math.isfinite(found) else None

    finite = sum(map(math.isfinite, ordered))
    return Quantiles(count=len(ordered), finite=finite, p50=at(0.5), p95=at(0.95))


def stable_version(log: RunLog) -> str:
    """Return the version that serves most users of the first policy after its last state."""
    newest: Rollout | None = None
    for state in log.rollouts:
        if newest is None or state.policy == newest.policy:
            newest = newer(newest, state)
    return newest.stable.version if newest else BASE_VERSION


def _first_of_line(
    version: str, children: Mapping[str, str], first_served: Mapping[str, datetime]
) -> datetime | None:
    moments = []
    walked: set[str] = set()
    current: str | None = version
    while current is not None and current not in walked:
        walked.add(current)
        if current in first_served:
            moments.append(first_served[current])
        current = children.get(current)
    return min(moments, default=None)


def _used(line: Mapping[str, Any]) -> bool:
    return line.get("outcome") == "used"


def _version(row: VersionRow, served: Mapping[str, int], ledgers: Ledgers) -> VersionFigures:
    return VersionFigures(
        sequence=row.sequence,
        version=row.version,
        parent=row.parent,
        phase=row.phase,
        reason=row.reason,
        decisions=served.get(row.version, 0),
        samples=sum(1 for line in ledgers.get(row.version, ()) if _used(line)),
    )
