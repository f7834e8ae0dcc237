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
from contracts.topics import SAMPLES

STEPS = {
    "decision.served",
    "decision.admitted",
    "safety.judged",
    "features.written",
    "reward.closed",
}
SPANS = {"admit", "judge safety", "reward"}
GATEWAY, LEARN = "gateway", "learn"
SHOWN = 3
"""Lacking decisions named per link."""


class Traceability(Struct, frozen=True, kw_only=True):
    """``explained`` counts decisions that lack no link; ``lacking`` names the others by link.

    A decision lacks its reward while its window is open. ``learned`` counts samples that a version
    read; the newest wait for the next one. ``traced`` counts decisions whose spans are all in the
    local files: spans may be lost or kept elsewhere, so that nothing depends on it. ``broken`` says
    what is wrong with the audit chains; ``cut`` counts those whose first records are gone, because
    they are older than the topic keeps them, or because somebody removed them. ``unread`` says
    which ledgers are damaged, so that it is not known what their versions learned.
    """

    decisions: int
    explained: int
    traced: int
    lacking: dict[str, tuple[str, ...]]
    samples: int
    learned: int
    audit_records: int
    audit_chains: int
    cut: int
    broken: tuple[str, ...]
    unread: tuple[str, ...] = ()


def traceability(evidence: Evidence) -> Traceability:
    """Explain every decision there is evidence of, and verify every audit chain."""
    events = {(e.TYPE, e.id): e for found in evidence.about.values() for e in found}.values()
    lacking: dict[str, list[str]] = {link: [] for link in LINKS}
    decisions = [event for event in events if isinstance(event, Decision) and _was_seen(event)]
    read_to = _read_to(evidence)
    samples = learned = traced = 0
    for decision in decisions:
        found = explanation(evidence, decision.id)
        samples += len(found.samples)
        learned += len(found.learned)
        traced += is_traced(found)
        to = read_to.get(decision.assignment.policy, 0)
        due = any(evidence.offsets.get(sample.id, to) < to for sample in found.samples)
        for link, holds in LINKS.items():
            if not holds(found, due):
                lacking[link].append(decision.id)
    chains = _chains(events)
    return Traceability(
        decisions=len(decisions),
        explained=len(decisions) - len({one for ids in lacking.values() for one in ids}),
        traced=traced,
        lacking={link: tuple(ids) for link, ids in lacking.items()},
        samples=samples,
        learned=learned,
        audit_records=sum(map(len, chains)),
        audit_chains=len(chains),
        cut=sum(chain[0].sequence > 0 for chain in chains),
        broken=tuple(problem for chain in chains for problem in _problems(chain)),
        unread=tuple(evidence.unread),
    )


def _was_seen(decision: Decision) -> bool:
    """Whether a user had it; a shadow's copy earns no reward and trains nothing."""
    return decision.assignment.arm != "shadow"


def is_traceable(found: Traceability) -> bool:
    """Return whether there are decisions, none lacks a link, no chain is broken and no ledger is
    damaged."""
    return 0 < found.decisions == found.explained and not (found.broken or found.unread)


def traceability_text(found: Traceability) -> str:
    """Return the table for people, with the first decisions that lack a link."""
    rows = [
        (link, found.decisions - len(ids), len(ids), " ".join(ids[:SHOWN]))
        for link, ids in found.lacking.items()
    ]
    state = "BROKEN:" if found.broken else "all sound"
    if found.cut:
        state = f"{found.cut} without their first records, {state}"
    return "\n".join(
        [
            f"{found.explained} of {found.decisions} decisions can be explained",
            table(("link", "decisions", "lacking", "which"), rows),
            f"traces: {found.traced} whole in the local files",
            f"samples: {found.samples}, of which a version has read {found.learned}",
            *(f"  not known of a version: {damage}" for damage in found.unread),
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


LINKS: Mapping[str, Callable[[Explanation, bool], bool]] = {
    "policy version": lambda found, _: _has_version(found),
    "safety features": lambda found, _: found.safety is not None,
    "reward": lambda found, _: bool(found.rewards),
    "events behind the reward": lambda found, _: _has_events(found),
    "audit of every step": lambda found, _: _has_steps(found),
    "version that learned it": lambda found, due: bool(found.learned) or not due,
}
"""What each decision must have; the second argument says that its sample lies below the offset
that versions have read to."""


def is_traced(found: Explanation) -> bool:
    """Return whether a decision's spans are all in the local files, the learner's if it learned."""
    names = {span.name for span in found.spans}
    processes = {span.process for span in found.spans}
    return names >= SPANS and GATEWAY in processes and (LEARN in names or not found.learned)


def _read_to(evidence: Evidence) -> dict[str, int]:
    """Return the offset up to which each policy's versions were made from the samples."""
    ends: dict[str, int] = {}
    for version in evidence.versions.values():
        for part in version.manifest.trained_on if version.manifest else ():
            if version.manifest and part.topic == SAMPLES.name:
                policy = version.manifest.policy
                ends[policy] = max(ends.get(policy, 0), part.next)
    return ends


def _problems(chain: list[AuditRecord]) -> list[str]:
    """Return what is broken in a chain; that it does not begin at its beginning is told apart."""
    problems = broken_links(chain)
    return problems[1:] if chain[0].sequence > 0 else problems


def _chains(events: Iterable[Event]) -> list[list[AuditRecord]]:
    """Return each producer's records in order."""
    chains: dict[str, list[AuditRecord]] = defaultdict(list)
    for event in events:
        if isinstance(event, AuditRecord):
            chains[event.producer].append(event)
    return [sorted(chain, key=lambda record: record.sequence) for chain in chains.values()]
