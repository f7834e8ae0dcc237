"""What became of each sample that was read: a line of the ledger that lies in every version."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from learner.experience import BASELINE, Experience

USED, REVISED = "used", "revised"
"""Outcomes of a sample that taught, and of one that corrects what its decision taught before: at
once, or where that is due later in a `Payment`."""

JUDGE = "judge"
"""Outcome of a sample whose user judges (`contracts.judges`), and trains nothing."""

SUPERSEDED, WITHDRAWN = "superseded", "withdrawn"
"""Outcomes of a sample that another of its decision took the place of before it was learned, and of
one that says that its decision has no reward any more."""

FORGOTTEN = "forgotten"
"""Outcome of a newer reward, or of a retraction, whose decision may have taught so long ago that it
is no longer known what: learned as new, it would count twice."""

IMPUTED, NO_REWARD = "imputed", "no-reward"
"""Outcomes of a sample without any signal: a reward model gave it one to teach with, or not."""

PRICED = "priced"
"""Outcome of a sample without any signal that broke a rule, and taught no more than that, by its
price or by the safe answer."""

PERSON, SAFE_ANSWER = "person", "safe-answer"
"""Whose correction of an answer was imitated, see `learner.safe_answer`."""

TAUGHT = (USED, REVISED, IMPUTED, PRICED)
"""Outcomes of samples that are in the weights, or will be when their turn to be paid comes."""

UNTAUGHT = (JUDGE, SUPERSEDED, WITHDRAWN, FORGOTTEN, NO_REWARD)
"""Outcomes that follow from whose the sample is, and what came after it."""


UNRATED = frozenset({SUPERSEDED, WITHDRAWN, FORGOTTEN, IMPUTED, NO_REWARD, PRICED})
"""Outcomes of samples that say no observed reward that holds."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a sample: one of the outcomes above, or why the weights did not learn from it.

    ``coefficient`` is what it had in the loss: weight times what that makes of the advantage, which
    most take as it is (`learner.losses.push`); 0 for what taught nothing, or not yet.
    ``reward_model`` is the version that imputed ``reward``, "" for an observed one. ``correction``
    says whose was imitated, "" if none was: that needs no log-probabilities, and does not age.
    """

    sample_id: str
    decision_id: str
    offset: int
    outcome: str
    user_reward_mean: float | None
    user_id: str = ""
    action: str = ""
    reward: float = 0.0
    violation: bool = False
    coefficient: float = 0.0
    reward_model: str = ""
    correction: str = ""


def outcome_of(
    experience: Experience,
    outcome: str,
    taught: Mapping[str, float],
    corrected: Collection[str] = (),
) -> Outcome:
    """Return the line of an experience; ``taught`` maps decisions to coefficients, ``corrected``
    are the samples with a correction that was imitated."""
    by = PERSON if experience.correction_ids else SAFE_ANSWER
    return Outcome(
        sample_id=experience.sample_id,
        decision_id=experience.decision_id,
        offset=experience.offset,
        outcome=outcome,
        user_reward_mean=experience.user_reward_mean,
        user_id=experience.user_id,
        action=experience.action,
        reward=experience.reward,
        violation=experience.violation,
        coefficient=taught.get(experience.decision_id, 0.0),
        reward_model=experience.imputed if experience.imputed != BASELINE else "",
        correction=by if experience.sample_id in corrected else "",
    )


class Payment(Struct, frozen=True, kw_only=True):
    """What a version taught of a decision whose reward changed before, and had taught by then.

    ``coefficient`` is what it had in the loss. Together with those of its lines in the ledgers they
    are what was taught of the decision, but for repetitions. ``undone``: the policy was back where
    it was before the first lesson, so that the rest was let go.
    """

    sample_id: str
    decision_id: str
    offset: int
    user_id: str = ""
    action: str = ""
    coefficient: float = 0.0
    undone: bool = False


def payments(
    owed: Iterable[Experience],
    paid: Mapping[str, float],
    undone: Collection[str],
    outcomes: Iterable[Outcome],
) -> tuple[Payment, ...]:
    """Return what a batch paid of what was owed, or let go.

    ``paid`` maps decisions to coefficients, ``undone`` are decisions; what its own line among the
    ``outcomes`` says is not said twice.
    """
    told = {outcome.sample_id for outcome in outcomes}
    return tuple(
        Payment(
            sample_id=e.sample_id,
            decision_id=e.decision_id,
            offset=e.offset,
            user_id=e.user_id,
            action=e.action,
            coefficient=paid.get(e.decision_id, 0.0),
            undone=e.decision_id in undone,
        )
        for e in owed
        if e.sample_id not in told and (e.decision_id in paid or e.decision_id in undone)
    )
