"""Whether every decision of a log can be explained link by link, and every audit chain is sound."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from console.evidence import Evidence
from console.explain import Explanation, explanation
from console.table import table
from contracts.audit import broken_links
from contracts.events import BASE_VERSION, AuditRecord, Decision, Event

STEPS = {
    "decision.served",
    "decision.admitted",
    "safety.judged",
    "features.written",
    "reward.closed",
}
SPANS = {"admit", "judge safety", "reward"}
TRACE = "trace"
SHOWN = 3
"""Lacking decisions named per link."""


class Traceability(Struct, frozen=True, kw_only=True):
    """``explained`` counts decisions that lack no link; ``lacking`` names the others by link.

    A decision lacks its reward while its window is open. Traces are left out where no spans are
    kept locally. ``learned`` counts samples that a version
    read; the newest wait for the next one. ``broken`` says what is wrong with the audit chains.
    """

    decisions: int
    explained: int
    lacking: dict[str, tuple[str, ...]]
    samples: int
    learned: int
    audit_records: int
    audit_chains: int
    broken: tuple[str, ...]


def traceability(evidence: Evidence) -> Traceability:
    """Explain every decision there is evidence of, and verify every audit chain."""
    events = {event.id: event for found in evidence.about.values() for event in found}
    links = {link: holds for link, holds in LINKS.items() if link != TRACE or evidence.spans}
    lacking: dict[str, list[str]] = {link: [] for link in links}
    decisions = [event for event in events.values() if isinstance(event, Decision)]
    samples = learned = 0
    for decision in decisions:
        found = explanation(evidence, decision.id)
        samples += len(found.samples)
        learned += len(found.learned)
        for link, holds in links.items():
            if not holds(found):
                lacking[link].append(decision.id)
    chains = _chains(events.values())
    return Traceability(
        decisions=len(decisions),
        explained=len(decisions) - len({one for ids in lacking.values() for one in ids}),
        lacking={link: tuple(ids) for link, ids in lacking.items()},
        samples=samples,
        learned=learned,
        audit_records=sum(map(len, chains.values())),
        audit_chains=len(chains),
        broken=tuple(problem for chain in chains.values() for problem in broken_links(chain)),
    )


def is_traceable(found: Traceability) -> bool:
    """Return whether nothing lacks and no chain is broken."""
    return found.explained == found.decisions and not found.broken


def traceability_text(found: Traceability) -> str:
    """Return the table for people, with the first decisions that lack a link."""
    rows = [
        (link, found.decisions - len(ids), len(ids), " ".join(ids[:SHOWN]))
        for link, ids in found.lacking.items()
    ]
    state = "BROKEN:" if found.broken else "all sound"
    return "\n".join(
        [
            f"{found.explained} of {found.decisions} decisions can be explained",
            table(("link", "decisions", "lacking", "which"), rows),
            f"samples: {found.samples}, of which a version has read {found.learned}",
            f"audit: {found.audit_records} records in {found.audit_chains} chains, {state}",
            *(f"  {problem}" for problem in found.broken),
        ]
    )


def _has_version(found: Explanation) -> bool:
    return found.version.version == BASE_VERSION or found.version.manifest is not None


def _has_events(found: Explanation) -> bool:
    known = {event.id for event in found.feedback}
    if found.safety is not None:
        known.add(found.safety.id)
    return all(known.issuperset(part.event_ids) for r in found.rewards for part in r.components)


def _has_steps(found: Explanation) -> bool:
    return {record.action for record in found.audit} >= STEPS


def _has_trace(found: Explanation) -> bool:
    return {span.name for span in found.spans} >= SPANS


LINKS: Mapping[str, Callable[[Explanation], bool]] = {
    "policy version": _has_version,
    "safety features": lambda found: found.safety is not None,
    "reward": lambda found: bool(found.rewards),
    "events behind the reward": _has_events,
    "audit of every step": _has_steps,
    TRACE: _has_trace,
}


def _chains(events: Iterable[Event]) -> dict[str, list[AuditRecord]]:
    """Return each producer's records in order."""
    chains: dict[str, list[AuditRecord]] = defaultdict(list)
    for event in events:
        if isinstance(event, AuditRecord):
            chains[event.producer].append(event)
    return {
        producer: sorted(chain, key=lambda record: record.sequence)
        for producer, chain in chains.items()
    }
