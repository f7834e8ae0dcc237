"""How far the learner has come: what it has read, learned and released; all but the tensors.

`advance` takes one micro-batch, `released` one release; both return a new value, so that whatever
was saved last is exactly what a restart goes on from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from contracts.events import BASE_VERSION
from contracts.judges import is_judge
from contracts.settings import Learner, Settings
from learner.advantage import breadth_of
from learner.anchor import in_service, refreshed
from learner.directory import versions_directory
from learner.experience import Experience
from learner.ledger import (
    FORGOTTEN,
    JUDGE,
    NO_REWARD,
    REVISED,
    TAUGHT,
    USED,
    WITHDRAWN,
    Outcome,
    Payment,
    outcome_of,
    payments,
)
from learner.losses import push
from learner.micro_batch import MicroBatch, Replay, compose, remember, without
from learner.objective import bounds_of
from learner.practice import practise
from learner.revision import (
    Memory,
    Taught,
    debts,
    forgotten,
    paid_now,
    retract,
    revise,
    settle,
)
from learner.revision import remember as remember_lessons
from learner.train_state import TrainState
from learner.update import UpdateResult, UpdateStats, update
from learner.value import Spread

LEAST_OF_A_JUDGE = 8
"""So many of a judge's answers are kept, however many judges there are."""

SERVED_LEAST = 64
"""So many answers, or a batch's, say what is in service: a few may all be a canary's."""

SEEN_LEAST = 20_000
"""Fewest ids of samples remembered, to recognise duplicates, once so many were read."""


class Progress(Struct, frozen=True, kw_only=True):
    """Everything a restart needs besides tensors.

    ``next_offset`` is the first offset of `samples` not yet learned from. ``ledger`` lists the
    outcome of every sample since version ``parent``, whose range began at ``first_offset``, but
    none before the batch of the first rating that may teach, which begins at ``ledger_from``, and
    ``payments`` what was taught since then of decisions that had taught before.
    ``stepped_batches`` are those that moved the weights.
    ``versions`` maps released ids to their numbers; ``served`` are those that gave the newest
    answers. ``evaluation`` holds the newest answers that judges rated, oldest first, ``judged``
    counts all of them, ``superseded`` the samples that another took the place of.
    ``multiplier`` is λ of `learner.constraint`; ``taught`` maps decisions to what was taught of
    them, ``owed`` are the newest samples of those whose reward changed and is not taught yet.
    Of decisions made until ``forgotten_before``, in POSIX seconds, it may be forgotten.
    ``users`` are those who taught since version ``parent``, and ``oldest_feedback_time`` is the
    oldest of what they said.
    ``anchor`` is the version that the newest batch was tied to, ``raters`` the users of the newest
    samples, ``practice`` the sha256 of the file that was practised from, "" if from none.
    ``imputed`` counts samples without a signal that taught an imputed reward, ``priced`` those that
    taught a violation, ``unrewarded`` those that taught nothing.
    """

    policy: str
    base: str
    batches: int = 0
    ledger_from: int = 0
    stepped_batches: int = 0
    next_offset: int = 0
    first_offset: int = 0
    released_batches: int = 0
    parent: str = BASE_VERSION
    versions: dict[str, int] = {}
    served: tuple[int, ...] = ()
    as_of: datetime | None = None
    newest_feedback_time: datetime | None = None
    oldest_feedback_time: datetime | None = None
    users: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    ledger: tuple[Outcome, ...] = ()
    payments: tuple[Payment, ...] = ()
    replay: Replay = Replay()
    spread: Spread = Spread()
    multiplier: float | None = None
    taught: dict[str, Taught] = {}
    forgotten_before: float = 0.0
    owed: tuple[Experience, ...] = ()
    stats: UpdateStats = UpdateStats()
    samples: int = 0
    revised: int = 0
    dropped: int = 0
    judged: int = 0
    superseded: int = 0
    evaluation: tuple[Experience, ...] = ()
    anchor: str = BASE_VERSION
    raters: tuple[str, ...] = ()
    practice: str = ""
    imputed: int = 0
    priced: int = 0
    unrewarded: int = 0

    @property
    def names(self) -> dict[int, str]:
        """Return the ids of released versions by their numbers."""
        return {sequence: version for version, sequence in self.versions.items()}

    @property
    def sequence(self) -> int:
        """Return the number of the next release."""
        return len(self.versions) + 1


class Beside(Struct, frozen=True, kw_only=True):
    """What was read beside the samples of a batch.

    ``judged`` are of judges and train nothing. Neither do those ``superseded``, each with its
    outcome; what is withdrawn is not learned from again. ``silent`` are without any signal: the
    imputed ones teach, and so may violations.
    """

    judged: Sequence[Experience] = ()
    superseded: Sequence[tuple[Experience, str]] = ()
    silent: Sequence[Experience] = ()


_NOTHING = Beside()


def advance(
    train: TrainState,
    progress: Progress,
    fresh: Sequence[Experience],
    settings: Settings,
    beside: Beside = _NOTHING,
) -> Progress:
    """Learn from one batch of new experiences, in offset order; changes ``train`` in place.

    Without ``fresh`` ones nothing teaches, and none of those ``beside`` may be imputed: the weights
    stay as they are, what was read is accounted for, and the costs of the silent move λ.
    """
    judged, superseded, silent = beside.judged, beside.superseded, beside.silent
    config = settings.learner
    withdrawn = [e for e, outcome in superseded if outcome in (WITHDRAWN, FORGOTTEN)]
    served = _served(progress.served, (*fresh, *silent, *judged), config)
    progress = replace(_heard(progress, fresh, withdrawn, config), served=served)
    counted = _counted(silent, settings)
    batch = MicroBatch(fresh=(), silent=counted)
    if fresh:
        batch = _batch_of(train, progress, fresh, counted, settings)
        train.anchor = refreshed(
            train.anchor,
            progress.versions,
            in_service(served),
            versions_directory(settings),
            config.anchor_refresh_releases,
        )
    result = update(train, batch, config, settings.engine.max_model_len)
    untaught = (
        *(outcome_of(e, JUDGE, {}) for e in judged),
        *(outcome_of(e, outcome, {}) for e, outcome in superseded),
        *(outcome_of(e, NO_REWARD, {}) for e in silent if not e.imputed),
    )
    outcomes = sorted((*result.outcomes, *untaught), key=lambda o: o.offset)
    # A restarted stream processor repeats at most the samples of decisions that it held open.
    kept = max(SEEN_LEAST, settings.streams.max_open_decisions)
    progress = _learned(train, progress, batch, result, config)
    heard = progress.as_of is not None  # till then no version can be made, nor have the lines
    next_offset = max((o.offset for o in outcomes), default=progress.next_offset - 1) + 1
    return replace(
        progress,
        batches=progress.batches + 1,
        next_offset=next_offset,
        ledger_from=progress.ledger_from if heard else next_offset,
        seen=(*progress.seen, *(o.sample_id for o in outcomes))[-kept:],
        ledger=(*progress.ledger, *outcomes) if heard else (),
        judged=progress.judged + len(judged),
        superseded=progress.superseded + len(superseded),
        unrewarded=progress.unrewarded + len(silent) - result.stats.imputed - result.stats.priced,
        evaluation=keep_judged(progress.evaluation, judged, settings.gate.evaluation_samples),
    )


def _heard(
    progress: Progress,
    fresh: Sequence[Experience],
    withdrawn: Sequence[Experience],
    config: Learner,
) -> Progress:
    """Return the progress when everything read is known and nothing of it is learned: what was
    taught, as it should have been by now, and the samples of what that changed."""
    memory: Memory = progress.taught
    changed = {e.decision_id: e for e in progress.owed}
    gone = {e.decision_id: e for e in withdrawn}
    known = [decision_id for decision_id in memory if decision_id in gone] if gone else []
    for decision_id in reversed(known):  # undone as by hand: what was taught last goes first
        memory = retract(memory, decision_id)
        changed[decision_id] = gone[decision_id]
    for experience in fresh:
        if experience.decision_id in memory:
            memory = revise(memory, experience, partial(push, config.loss, bounds_of(config)))
            changed[experience.decision_id] = experience
    moments = [e.feedback_time for e in fresh]
    return replace(
        progress,
        taught=dict(memory),
        owed=tuple(changed.values()),
        replay=without(progress.replay, frozenset(gone)),
        evaluation=tuple(e for e in progress.evaluation if e.decision_id not in gone),
        raters=(*progress.raters, *(e.user_id for e in fresh))[-config.user_window :],
        as_of=_newest(progress.as_of, [e.decided_at for e in fresh]),
        newest_feedback_time=_newest(progress.newest_feedback_time, moments),
    )


def _served(
    before: tuple[int, ...], read: Sequence[Experience], config: Learner
) -> tuple[int, ...]:
    """Return the releases that gave the newest answers, whatever became of these."""
    newest = [e.behaviour_sequence for e in sorted(read, key=lambda e: e.offset)]
    return (*before, *newest)[-max(SERVED_LEAST, config.batch_samples) :]


def _counted(silent: Sequence[Experience], settings: Settings) -> tuple[Experience, ...]:
    """Return those whose costs count, none of judges; what teaches nothing has no tokens."""
    policy = settings.policy
    return tuple(
        e if e.imputed else replace(e, prompt_ids=(), token_ids=(), logprobs=(), correction_ids=())
        for e in silent
        if not is_judge(policy.name, e.user_id, policy.judge_share)
    )


def _batch_of(
    train: TrainState,
    progress: Progress,
    fresh: Sequence[Experience],
    silent: tuple[Experience, ...],
    settings: Settings,
) -> MicroBatch:
    """Return what the next update learns from."""
    config = settings.learner
    owed = debts(progress.taught, progress.owed)
    batch = compose(
        fresh,
        progress.replay,
        config,
        number=progress.batches,
        served_sequence=in_service(progress.served),
        learned=frozenset(progress.taught),
        owed=paid_now(owed, config.batch_samples),
        activity=_activity(progress),
        silent=silent,
        safe_ids=train.safe_ids,
    )
    batch = replace(
        batch,
        pace=min(1.0, (progress.stepped_batches + 1) / max(config.warm_up_batches, 1)),
        fill=min(1.0, len(fresh) / config.batch_samples),
        breadth=breadth_of(fresh, progress.raters),
    )
    if train.practice is None:
        return batch
    practised = practise(train.policy, train.practice, config, progress.batches)
    return replace(batch, practised=practised)


def _activity(progress: Progress) -> dict[str, int]:
    """Return how many samples each user has, in the window or in the buffer, where these are more:
    who rated a lot and stopped is no newcomer as long as that is repeated."""
    repeated = Counter(e.user_id for e in progress.replay.recent)
    return dict(Counter(progress.raters) | repeated)


def _learned(
    train: TrainState, progress: Progress, batch: MicroBatch, result: UpdateResult, config: Learner
) -> Progress:
    """Return the progress after an update: what it taught, owes and may repeat."""
    stats = result.stats
    fresh = sorted((*batch.fresh, *batch.revised), key=lambda e: e.offset)
    learned = frozenset(o.sample_id for o in result.outcomes if o.outcome in (USED, REVISED))
    used = sum(1 for o in result.outcomes if o.outcome == USED)
    known = settle(progress.taught, result.undone)
    memory = remember_lessons(known, result.lessons, config.revision_memory)
    given_up = {e.decision_id for e in batch.revised if e.sample_id not in learned}
    owed = [debt.experience for debt in batch.owed]
    paid = {one.decision_id: one.coefficient for one in result.lessons if one.pays_debt}
    tried = frozenset(e.decision_id for e in owed)
    changed = [e for e in progress.owed if stats.skipped or e.decision_id not in given_up]
    # What is paid slowly, or not at all, must not block the others.
    changed.sort(key=lambda e: e.decision_id in tried)
    heard = [e.feedback_time for e in fresh if e.sample_id in learned]
    teachers = {o.user_id for o in result.outcomes if o.outcome in TAUGHT or o.correction}
    told = frozenset(e.decision_id for e in batch.corrections)
    new = [*fresh, *(e for e in batch.silent if e.decision_id in told)]
    # What a revision says is not learned where the step is skipped; what it revises is wrong.
    changed_ids = frozenset(e.decision_id for e in batch.revised)
    replay = without(progress.replay, changed_ids) if stats.skipped else progress.replay
    return replace(
        progress,
        taught=memory,
        forgotten_before=max(progress.forgotten_before, forgotten(known, result.lessons, memory)),
        owed=tuple(debt.experience for debt in debts(memory, changed)),
        payments=(*progress.payments, *payments(owed, paid, result.undone, result.outcomes)),
        replay=replay if stats.skipped else remember(replay, new, learned, config, told),
        oldest_feedback_time=min([*_known(progress.oldest_feedback_time), *heard], default=None),
        users=tuple(sorted(teachers.union(progress.users))),
        spread=train.spread,
        multiplier=train.multiplier,
        anchor=train.anchor.version,
        practice=train.practice.digest if train.practice else "",
        stats=stats,
        stepped_batches=progress.stepped_batches + stats.stepped,
        samples=progress.samples + used,
        revised=progress.revised + len(learned) - used,
        dropped=progress.dropped + len(fresh) - len(learned),
        imputed=progress.imputed + stats.imputed,
        priced=progress.priced + stats.priced,
    )


def keep_judged(
    before: Sequence[Experience], judged: Sequence[Experience], limit: int
) -> tuple[Experience, ...]:
    """Return the newest ``limit`` judged answers; a newer revision takes the older one's place.

    Of one judge there are no more than twice an equal share, else whoever judges most decides.
    """
    by_decision = {e.decision_id: e for e in before}
    for experience in judged:
        by_decision.pop(experience.decision_id, None)
        by_decision[experience.decision_id] = experience
    users = {e.user_id for e in by_decision.values()}
    most = max(LEAST_OF_A_JUDGE, -(-2 * limit // max(len(users), 1)))
    kept: list[Experience] = []
    counts = Counter[str]()
    for experience in reversed(by_decision.values()):
        counts[experience.user_id] += 1
        if counts[experience.user_id] <= most and len(kept) < limit:
            kept.append(experience)
    return tuple(reversed(kept))


def release_is_due(progress: Progress, publish_every: int) -> bool:
    """Return whether enough batches were learned since the last release, and any sample at all."""
    enough = progress.batches - progress.released_batches >= publish_every
    return enough and progress.as_of is not None


def released(progress: Progress, version: str) -> Progress:
    """Return the progress after a release: it is the parent of the next one."""
    return replace(
        progress,
        first_offset=progress.next_offset,
        released_batches=progress.batches,
        parent=version,
        versions={**progress.versions, version: progress.sequence},
        ledger=(),
        payments=(),
        users=(),
        oldest_feedback_time=None,
    )


def _newest(before: datetime | None, moments: Sequence[datetime]) -> datetime | None:
    return max([*moments, *_known(before)], default=None)


def _known(moment: datetime | None) -> list[datetime]:
    return [moment] if moment else []
