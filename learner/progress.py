"""How far the learner has come: what it has read, learned and released; all but the tensors.

`advance` takes one micro-batch, `released` one release; both return a new value, so that whatever
was saved last is exactly what a restart goes on from.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from contracts.events import BASE_VERSION
from contracts.settings import Settings
from learner.experience import Experience
from learner.micro_batch import Replay, compose, remember
from learner.update import Outcome, TrainState, UpdateStats, update
from learner.value import Spread

SEEN_LEAST = 20_000
"""Fewest ids of samples remembered, to recognise duplicates, once so many were read."""


class Progress(Struct, frozen=True, kw_only=True):
    """Everything a restart needs besides tensors.

    ``next_offset`` is the first offset of `samples` not yet learned from. ``ledger`` lists the
    outcome of every sample since version ``parent``, whose range began at ``first_offset``.
    ``versions`` maps released ids to their numbers; ``served_sequence`` is the newest one that
    was seen serving.
    """

    policy: str
    base: str
    batches: int = 0
    next_offset: int = 0
    first_offset: int = 0
    released_batches: int = 0
    parent: str = BASE_VERSION
    versions: dict[str, int] = {}
    served_sequence: int = 0
    as_of: datetime | None = None
    newest_feedback_time: datetime | None = None
    seen: tuple[str, ...] = ()
    ledger: tuple[Outcome, ...] = ()
    replay: Replay = Replay()
    spread: Spread = Spread()
    stats: UpdateStats = UpdateStats()
    samples: int = 0
    dropped: int = 0

    @property
    def sequence(self) -> int:
        """Return the number of the next release."""
        return len(self.versions) + 1


def advance(
    train: TrainState, progress: Progress, fresh: Sequence[Experience], settings: Settings
) -> Progress:
    """Learn from one full batch of new experiences, in offset order; changes ``train`` in place."""
    config = settings.learner
    # A restarted stream processor repeats at most the samples of decisions that it held open.
    kept = max(SEEN_LEAST, settings.streams.max_open_decisions)
    served = max(progress.served_sequence, *(e.behaviour_sequence for e in fresh))
    batch = compose(fresh, progress.replay, config, number=progress.batches, served_sequence=served)
    result = update(train, batch, config, settings.engine.max_model_len)
    used = frozenset(o.sample_id for o in result.outcomes if o.outcome == "used")
    return replace(
        progress,
        batches=progress.batches + 1,
        next_offset=fresh[-1].offset + 1,
        served_sequence=served,
        as_of=_newest(progress.as_of, [e.decided_at for e in fresh]),
        newest_feedback_time=_newest(
            progress.newest_feedback_time, [e.feedback_time for e in fresh]
        ),
        seen=(*progress.seen, *(e.sample_id for e in fresh))[-kept:],
        ledger=(*progress.ledger, *result.outcomes),
        replay=progress.replay
        if result.stats.skipped
        else remember(progress.replay, fresh, used, config),
        spread=train.spread,
        stats=result.stats,
        samples=progress.samples + len(used),
        dropped=progress.dropped + len(fresh) - len(used),
    )


def release_is_due(progress: Progress, publish_every: int) -> bool:
    """Return whether enough batches were learned since the last release."""
    return progress.batches - progress.released_batches >= publish_every


def released(progress: Progress, version: str) -> Progress:
    """Return the progress after a release: it is the parent of the next one."""
    return replace(
        progress,
        first_offset=progress.next_offset,
        released_batches=progress.batches,
        parent=version,
        versions={**progress.versions, version: progress.sequence},
        ledger=(),
    )


def _newest(before: datetime | None, moments: Sequence[datetime]) -> datetime:
    return max([*moments, *([before] if before else [])])
