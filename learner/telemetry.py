"""What the learner tells of itself: audit records, lines of its log, spans and heartbeat counts."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

from contracts.events import Release
from contracts.manifest import Manifest
from contracts.topics import SAMPLES
from contracts.tracing import current_trace_headers, span
from learner.intake import Intake
from learner.ledger import JUDGE, NO_REWARD, UNTAUGHT
from learner.outlet import Output
from learner.progress import Progress
from learner.update import UpdateStats

_log = logging.getLogger("learner")


def tell_start(outlet: Output, progress: Progress) -> None:
    """Say where a run goes on from."""
    outlet.audit(
        "learner.started",
        progress.policy,
        {
            "base": progress.base,
            "batches": progress.batches,
            "next_offset": progress.next_offset,
            "releases": len(progress.versions),
            "multiplier": progress.multiplier,
        },
    )
    _log.info("starting at batch %d, offset %d", progress.batches, progress.next_offset)


def tell_lost(outlet: Output, progress: Progress, begins: int) -> None:
    """Say that records are gone which nothing was committed of: ``begins`` is the next offset there
    is.

    Only own samples move the committed offset, so the records may all have been read, and be other
    policies'.
    """
    following, policy = progress.next_offset, progress.policy
    found = f"may have held samples of {policy} that were not learned from"
    _log.warning("offsets %d to %d are gone from the log; they %s", following, begins - 1, found)
    detail = {"first_offset": following, "next_offset": begins, "samples": "not known"}
    reason = f"retention removed these records, which {found}; set a longer retention.ms for "
    outlet.audit("samples.lost", policy, detail, reason + SAMPLES.name)


def tell_release(
    outlet: Output, event: Release, manifest: Manifest, progress: Progress, judged: int
) -> None:
    """Say that a version was released, with evidence from ``judged`` answers."""
    outlet.audit(
        "version.released",
        event.version,
        {
            "sequence": event.sequence,
            "parent": event.parent,
            "samples": manifest.samples,
            "judged": judged,
            "first_offset": progress.first_offset,
            "next_offset": progress.next_offset,
        },
    )


def batch_span(progress: Progress, intake: Intake) -> AbstractContextManager[object]:
    """Return the span of the next batch, with links to the traces of its samples."""
    offsets = [arrival.experience.offset for arrival in intake.arrivals]
    traces = [arrival.trace for arrival in intake.pending.values()]
    return span(
        "learn batch",
        links=[trace for trace in traces if trace],
        attributes={
            "headrace.batch": progress.batches,
            "headrace.offset.first": min(offsets),
            "headrace.offset.next": max(offsets) + 1,
        },
    )


def trace_samples(progress: Progress, intake: Intake) -> None:
    """End the own trace of each sample learned with a span that says which release has it."""
    batch = [current_trace_headers()]
    outcomes = {one.experience.sample_id: JUDGE for one in intake.judged.values()}
    outcomes |= {one.experience.sample_id: why for one, why in intake.superseded}
    outcomes |= {outcome.sample_id: outcome.outcome for outcome in progress.ledger}
    for arrival in intake.arrivals:
        sample_id = arrival.experience.sample_id
        attributes: dict[str, str | int] = {
            "headrace.sample.id": sample_id,
            "headrace.decision.id": arrival.experience.decision_id,
            "headrace.version.sequence": progress.sequence,
            "headrace.outcome": outcomes.get(sample_id, NO_REWARD),
        }
        if arrival.trace:
            with span("learn", parent=arrival.trace, links=batch, attributes=attributes):
                pass


def tell_batch(outlet: Output, progress: Progress, intake: Intake, seconds: float) -> None:
    """Say what became of a batch, which ``progress`` has just learned in so many seconds."""
    stats, following = progress.stats, progress.next_offset
    first = min(arrival.experience.offset for arrival in intake.arrivals)
    outlet.audit(
        "batch.learned",
        f"{progress.policy}/{progress.batches}",
        {"first_offset": first, "next_offset": following, **_figures(progress, intake)},
    )
    _log.info(
        "batch %d: offsets %d to %d, %d of %d used (+%d replayed), reward %s, "
        "violations %s (multiplier %.2f), kl %.3f, weight %.2f, clipped %.1f%%, gradient %.2f, "
        "%.1f s",
        *(progress.batches, first, following - 1, stats.used, len(intake.pending), stats.replayed),
        "-" if stats.reward_mean is None else f"{stats.reward_mean:+.2f}",
        "-" if stats.cost_mean is None else f"{stats.cost_mean:.1%}",
        stats.multiplier,
        *(stats.kl, stats.mean_weight, 100 * stats.clip_share, stats.grad_norm, seconds),
    )


def release_figures(stats: UpdateStats) -> dict[str, float]:
    """Return what a release tells of its newest batch; what that had none of is left out."""
    means = {"reward_mean": stats.reward_mean, "cost_mean": stats.cost_mean}
    found = {name: mean for name, mean in means.items() if mean is not None}
    if stats.tokens and not stats.skipped:
        found |= {
            "policy_loss": stats.policy_loss,
            "kl": stats.kl,
            "clip_share": stats.clip_share,
            "mean_weight": stats.mean_weight,
        }
    return {**found, "multiplier": stats.multiplier}


def _figures(progress: Progress, intake: Intake) -> dict[str, Any]:
    stats = progress.stats
    told = release_figures(stats)
    read = {arrival.experience.sample_id for arrival in intake.arrivals}
    newest = progress.ledger[-len(read) :]
    taught = [o for o in newest if o.sample_id in read and o.outcome not in UNTAUGHT]
    known = sum(1 for one in taught if one.user_reward_mean is not None)
    return {
        "used": stats.used,
        "dropped": stats.dropped,
        "replayed": stats.replayed,
        "judged": len(intake.judged),
        "superseded": len(intake.superseded),
        "imputed": stats.imputed,
        "priced": stats.priced,
        "unrewarded": len(intake.silent) - stats.imputed - stats.priced,
        "revised": stats.revised,
        "owed": len(progress.owed),
        "corrections": stats.corrections,
        "cost_mean": stats.cost_mean,
        "multiplier": stats.multiplier,
        "pairs": stats.pairs,
        "practised": stats.practised,
        "practice_reward": stats.practice_reward,
        "users_with_features": known,
        "policy_loss": told.get("policy_loss"),
        "value_loss": stats.value_loss,
        "correction_loss": stats.correction_loss,
        "preference_loss": stats.preference_loss,
        "practice_loss": stats.practice_loss,
        "grad_norm": stats.grad_norm,
        "kl": told.get("kl"),
        "anchor": progress.anchor,
        "version_sequence": progress.sequence,
    }


def counts_of(progress: Progress, intake: Intake, dead_letters: int) -> dict[str, int]:
    """Return the counts of the heartbeat: what was learned, and what was read since."""
    return {
        "samples": progress.samples,
        "batches": progress.batches,
        "releases": len(progress.versions),
        "revised": progress.revised,
        "dropped": progress.dropped,
        "judged": progress.judged + len(intake.judged),
        "superseded": progress.superseded + len(intake.superseded),
        "imputed": progress.imputed,
        "priced": progress.priced,
        "unrewarded": progress.unrewarded,
        "silent": progress.imputed + progress.priced + progress.unrewarded + len(intake.silent),
        "duplicates": intake.duplicates,
        "preferences": intake.preferences,
        "others": intake.others,
        "dead_letters": dead_letters,
    }
