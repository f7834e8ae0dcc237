"""Which answers an update may learn from, and why not from the others.

Each function names in ``reasons`` what it leaves out, by sample, as the ledger will
(`learner.ledger`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from contracts.settings import Learner
from learner.experience import BASELINE, Experience
from learner.ledger import NO_REWARD
from learner.losses import NEED_LOGPROBS
from learner.micro_batch import MicroBatch
from learner.revision import Debt
from learner.scoring import Scored
from learner.train_state import TrainState
from learner.usable import unusable

UNDONE = "undone"
"""Why nothing more is learned of a retracted decision: the policy is back where it was."""


def admitted(
    state: TrainState,
    batch: MicroBatch,
    reasons: dict[str, str],
    config: Learner,
    max_tokens: int,
) -> list[Experience]:
    """Return what can be scored and teaches; ``reasons`` gets the others.

    A debt does not grow stale: what an old answer taught is corrected however late. A new reward
    whose turn has not come yet is looked at, too, since its line in the ledger is written now.
    """
    usable = []
    for experience in (*batch.fresh, *batch.replayed, *batch.imputed):
        if batch.served_sequence - experience.behaviour_sequence > config.max_version_lag:
            reasons[experience.sample_id] = "stale"
        elif experience.imputed == BASELINE and state.multiplier == 0.0:
            reasons[experience.sample_id] = NO_REWARD
        else:
            usable.append(experience)
    usable += [debt.experience for debt in batch.owed]
    for experience in (*usable, *batch.revised):
        reason = unusable(experience, max_tokens, state.policy.vocabulary_size)
        if reason:
            reasons[experience.sample_id] = reason
    return [e for e in usable if e.sample_id not in reasons]


def agreed(
    found: Sequence[Scored],
    reasons: dict[str, str],
    owed: Mapping[str, Debt],
    config: Learner,
) -> list[Scored]:
    """Return what has finite numbers and the engine's agreement; ``reasons`` gets the others.

    What is owed needs no agreement: what taught most has moved furthest since, and is taken back
    without the probabilities of whoever drew it, until the policy is back where it was.
    """
    sound = []
    has_ratio = config.loss in NEED_LOGPROBS
    for one in found:
        debt = owed.get(one.experience.decision_id)
        if one.prox and debt is not None and debt.is_undone(sum(one.prox)):
            reasons[one.experience.sample_id] = UNDONE
            continue
        far = bool(one.prox) and has_ratio and not _log_ratio(one) <= config.max_log_ratio
        if not _is_finite(one):
            reasons[one.experience.sample_id] = "not-finite"
        elif not far:
            sound.append(one)
        elif debt is not None:
            sound.append(replace(one, experience=replace(one.experience, logprobs=())))
        else:
            reasons[one.experience.sample_id] = "log-ratio"
    return _beside_observed(sound, reasons)


def _beside_observed(sound: list[Scored], reasons: dict[str, str]) -> list[Scored]:
    """Return nothing of imputed rewards alone: there is none that they could count less than."""
    if any(not one.experience.imputed for one in sound):
        return sound
    reasons.update((one.experience.sample_id, NO_REWARD) for one in sound)
    return []


def _is_finite(scored: Scored) -> bool:
    values = (*scored.prox, *scored.anchor, *scored.experience.logprobs)
    return all(map(math.isfinite, values))


def _log_ratio(scored: Scored) -> float:
    mu = scored.experience.logprobs
    return abs(sum(scored.prox) - sum(mu)) if mu else 0.0
