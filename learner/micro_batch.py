"""Which experiences one update learns from, as a pure function of the log and of what came before.

The clock has no say: a batch is full when enough new distinct samples have been read, in offset
order (`learner.intake`). The draw from the replay buffer depends on the seed and the number of the
batch alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from contracts.settings import Learner
from learner.experience import Experience
from learner.ledger import PERSON, SAFE_ANSWER
from learner.practice import Practised
from learner.revision import Debt
from learner.safe_answer import corrected
from learner.turns import in_turns

CORRECTIONS_KEPT = 512
"""So many of people's corrections are kept, and as many violations corrected to the safe answer:
who breaks rules all day, without a word, must not push out what people said."""


class MicroBatch(Struct, frozen=True, kw_only=True):
    """What one update learns from.

    ``replayed`` and ``corrections`` were learned from before, except corrections of ``fresh`` and
    ``silent``.
    ``revised`` are new rewards of decisions learned from before; what such a reward changes is in
    ``owed``, with what earlier ones still have to teach. ``served_sequence`` is the release
    in service; staleness is counted from it. ``activity`` is how many of the newest
    samples each user has, ``correction_weights`` how much each correction counts beside the others,
    1 unless said, by its decision. ``silent`` are answers without a signal; those with an imputed
    reward teach, and all of them move the price of violations. ``pace`` is the share of the
    learning rate that its steps are made with. ``fill`` is how many samples were rated beside
    `batch_samples`, ``breadth`` what `learner.advantage.breadth_of` says of their users, each in
    (0, 1]: the weights of all but debts are multiplied by both.
    """

    fresh: tuple[Experience, ...]
    replayed: tuple[Experience, ...] = ()
    revised: tuple[Experience, ...] = ()
    owed: tuple[Debt, ...] = ()
    corrections: tuple[Experience, ...] = ()
    served_sequence: int = 0
    activity: dict[str, int] = {}
    correction_weights: dict[str, float] = {}
    practised: tuple[Practised, ...] = ()
    silent: tuple[Experience, ...] = ()
    pace: float = 1.0
    fill: float = 1.0
    breadth: float = 1.0

    @property
    def imputed(self) -> tuple[Experience, ...]:
        """Return the silent ones that teach."""
        return tuple(e for e in self.silent if e.imputed)


class Replay(Struct, frozen=True, kw_only=True):
    """What may be learned from again: recent experiences, and recent corrections.

    Those without ``correction_ids`` are violations, corrected to whatever the safe answer is.
    """

    recent: tuple[Experience, ...] = ()
    corrections: tuple[Experience, ...] = ()


def compose(
    fresh: Sequence[Experience],
    replay: Replay,
    config: Learner,
    *,
    number: int,
    served_sequence: int,
    learned: frozenset[str] = frozenset(),
    owed: tuple[Debt, ...] = (),
    activity: dict[str, int] | None = None,
    silent: tuple[Experience, ...] = (),
    safe_ids: tuple[int, ...] = (),
) -> MicroBatch:
    """Return micro-batch ``number``: the fresh experiences and a draw of older ones.

    Fresh ones of decisions that were ``learned`` from before are revisions; ``owed`` is what these
    and earlier ones change.

    ``silent`` ones without a signal go along. Violations, new or earlier, are corrected to
    ``safe_ids``, the tokens of the safe answer. Of a decision a person's first correction is new,
    what they say later takes its place among those repeated.
    ``replay_share`` of the fresh count is drawn from the buffer, without those that were served
    more than ``max_version_lag`` releases before ``served_sequence``; corrections do not age.
    """
    rng = random.Random(f"{config.seed}/{number}")
    newer = {e.decision_id for e in (*fresh, *silent, *(debt.experience for debt in owed))}
    told = {e.decision_id: _corrector(e) for e in replay.corrections}
    eligible = [
        experience
        for experience in replay.recent
        if experience.decision_id not in newer
        and served_sequence - experience.behaviour_sequence <= config.max_version_lag
    ]
    said = [e for e in (*fresh, *silent) if told.get(e.decision_id) != _corrector(e)]
    said_before = [e for e in replay.corrections if e.decision_id not in newer]
    said_before += [e for e in (*fresh, *silent) if told.get(e.decision_id) == _corrector(e)]
    new, old = corrected(said, safe_ids), corrected(said_before, safe_ids)
    again = _draw_in_turns(rng, old, config.correction_replay)
    return MicroBatch(
        fresh=tuple(e for e in fresh if e.decision_id not in learned),
        revised=tuple(e for e in fresh if e.decision_id in learned),
        replayed=_draw(rng, eligible, int(config.replay_share * len(fresh))),
        corrections=(*new, *again),
        correction_weights=_correction_weights(new, old, again),
        owed=owed,
        served_sequence=served_sequence,
        activity=activity or {},
        silent=silent,
    )


def remember(
    replay: Replay,
    fresh: Sequence[Experience],
    used: frozenset[str],
    config: Learner,
    told: frozenset[str] = frozenset(),
) -> Replay:
    """Return the buffer with the fresh experiences added, of which only ``used`` ids are repeated.

    A newer revision of a decision takes the place of the older one. ``told`` are the decisions that
    were corrected, by a person or to the safe answer.
    """
    newer = {experience.decision_id for experience in fresh}
    recent = [e for e in replay.recent if e.decision_id not in newer]
    recent += [e for e in fresh if e.sample_id in used]
    before = {e.decision_id: _corrector(e) for e in replay.corrections}
    told |= {e.decision_id for e in fresh if before.get(e.decision_id) == _corrector(e)}
    corrections = [e for e in replay.corrections if e.decision_id not in newer]
    corrections += [e for e in fresh if e.correction_ids or e.decision_id in told]
    return Replay(
        recent=tuple(recent[-config.replay_capacity :]),
        corrections=_newest_of_each_kind(corrections),
    )


def without(replay: Replay, decision_ids: frozenset[str]) -> Replay:
    """Return the buffer without what was learned of these decisions."""
    return Replay(
        recent=tuple(e for e in replay.recent if e.decision_id not in decision_ids),
        corrections=tuple(e for e in replay.corrections if e.decision_id not in decision_ids),
    )


def _corrector(experience: Experience) -> str:
    """Return whose correction an answer has, "" if none: a person's goes before the safe answer."""
    if experience.correction_ids:
        return PERSON
    return SAFE_ANSWER if experience.violation else ""


def _newest_of_each_kind(corrections: Sequence[Experience]) -> tuple[Experience, ...]:
    """Return what is kept of people's corrections and of violations, in the order given.

    Users take turns, from their newest back: no account can push out what all others said.
    """
    kept: list[int] = []
    for by_a_person in (True, False):
        places = [n for n, e in enumerate(corrections) if bool(e.correction_ids) == by_a_person]
        newest = places[::-1]
        turns = in_turns([corrections[place].user_id for place in newest])
        kept += [newest[turn] for turn in turns[:CORRECTIONS_KEPT]]
    return tuple(corrections[place] for place in sorted(kept))


def _correction_weights(
    new: Sequence[Experience], old: Sequence[Experience], again: Sequence[Experience]
) -> dict[str, float]:
    """Return how much corrections count, so that users do so alike over time.

    A user is drawn as often as any other, however much they correct; of the ``new`` ones there are
    as many as they give, and each counts as much as its user has few of all that are known.
    """
    known, drawn = (Counter(e.user_id for e in group) for group in ((*new, *old), again))
    usual = known.total() / max(len(known), 1)
    of_new = {e.decision_id: usual / known[e.user_id] for e in new}
    return of_new | {e.decision_id: 1.0 / drawn[e.user_id] for e in again}


def _draw_in_turns(
    rng: random.Random, candidates: Sequence[Experience], count: int
) -> tuple[Experience, ...]:
    """Return a draw in which users take turns, each giving one of theirs at random."""
    users = sorted({e.user_id for e in candidates})
    rng.shuffle(users)
    rank = {user: number for number, user in enumerate(users)}
    shuffled = rng.sample(range(len(candidates)), len(candidates))
    shuffled.sort(key=lambda place: rank[candidates[place].user_id])
    turns = in_turns([candidates[place].user_id for place in shuffled])
    return tuple(candidates[place] for place in sorted(shuffled[turn] for turn in turns[:count]))


def _draw(
    rng: random.Random, candidates: Sequence[Experience], count: int
) -> tuple[Experience, ...]:
    places = sorted(rng.sample(range(len(candidates)), min(count, len(candidates))))
    return tuple(candidates[place] for place in places)
