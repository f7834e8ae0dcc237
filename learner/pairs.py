"""Corrections: the answer that was wanted, and as a pair with it the one that was given.

A correction is the only signal that says what to do instead. The wanted answer is imitated, and
preferred over the given one by `learner.losses.dpo`, both from one forward pass. Both answers are
scored at temperature 1: the wanted one was not drawn at any. Shape suffixes: b sequences, t tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from contracts.settings import Learner
from learner.advantage import user_weights
from learner.anchor import Anchor
from learner.buckets import TokenSequence, bucket_of, grouped, padded
from learner.experience import Experience
from learner.losses import Bounds, Terms, dpo
from learner.micro_batch import MicroBatch
from learner.policy import Policy
from learner.usable import can_be_scored

MOST_SHARES = 4.0
"""A user's corrections count this many times as much as their samples at most; those to the safe
answer λ times that."""


class Correction(Struct, frozen=True):
    """A wanted answer, and the given one; None where that cannot be scored or is the same.

    ``share`` is its part of all corrections of a batch, at most 1 together before violations are
    dear. The anchor's log-probabilities, one per response token, are there for pairs alone.
    """

    wanted: TokenSequence
    share: float
    given: TokenSequence | None = None
    wanted_anchor: tuple[float, ...] = ()
    given_anchor: tuple[float, ...] = ()


class CorrectionLosses(Struct, frozen=True):
    """Losses before a step, of imitation and of preference, each correction by its share."""

    imitation: float = 0.0
    preference: float = 0.0


def teachable(
    experiences: Sequence[Experience], max_tokens: int, vocabulary: int
) -> list[Experience]:
    """Return those whose correction can be learned from, in the order given.

    ``max_tokens`` bounds prompt and answer together, ``vocabulary`` the ids of tokens.
    """
    return [
        one
        for one in experiences
        if can_be_scored(one.prompt_ids, one.correction_ids, max_tokens, vocabulary)
    ]


def corrections_of(
    batch: MicroBatch,
    max_tokens: int,
    vocabulary: int,
    *,
    safe_ids: tuple[int, ...] = (),
    multiplier: float = 0.0,
) -> tuple[Correction, ...]:
    """Return the corrections of a batch that are `teachable`, in the order given.

    A violation corrected to ``safe_ids`` counts ``multiplier`` times where that is more than once:
    what the policy would hardly write can be pushed no further away, and then only this makes
    violations fewer while their price rises.
    """
    found = []
    told = teachable(batch.corrections, max_tokens, vocabulary)
    for one, share in zip(told, _shares(told, batch), strict=True):
        is_safe_answer = one.violation and one.correction_ids == safe_ids
        times = max(multiplier, 1.0) if is_safe_answer else 1.0
        wanted = TokenSequence(one.prompt_ids, one.correction_ids)
        given = TokenSequence(one.prompt_ids, one.token_ids)
        told_apart = given != wanted and can_be_scored(
            one.prompt_ids, one.token_ids, max_tokens, vocabulary
        )
        found.append(Correction(wanted, times * share, given if told_apart else None))
    return tuple(found)


def _shares(told: Sequence[Experience], batch: MicroBatch) -> list[float]:
    """Return what part each correction has, by its weight in the batch.

    No user has more than `MOST_SHARES` times what their samples in the batch weigh, all users
    counting alike over time: a few who are the only ones to correct must not weigh as much as all
    ratings together, however many of the batch's samples are theirs. Nor do all of them weigh more
    than the batch is full.
    """
    rated = _rated_shares(told, batch)
    weights = [batch.correction_weights.get(e.decision_id, 1.0) for e in told]
    total = sum(weights)
    of_user = defaultdict[str, float](float)
    for e, weight in zip(told, weights, strict=True):
        of_user[e.user_id] += weight / total
    return [
        batch.fill * weight / total * min(1.0, MOST_SHARES * rated[e.user_id] / of_user[e.user_id])
        for e, weight in zip(told, weights, strict=True)
    ]


def _rated_shares(told: Sequence[Experience], batch: MicroBatch) -> dict[str, float]:
    """Return what part of a batch's samples each user has; who has none there an equal part.

    Corrections do not age: whoever gave one may have left long ago, and nobody knows how much they
    would say now.
    """
    users = [e.user_id for e in (*batch.fresh, *batch.replayed)]
    shares = defaultdict[str, float](float)
    for user, weight in zip(users, user_weights(users, batch.activity), strict=True):
        shares[user] += weight
    absent = {e.user_id for e in told} - shares.keys()
    equal = 1.0 / max(len(shares) or len(absent), 1)
    return {**shares, **dict.fromkeys(absent, equal)}


def anchored(
    policy: Policy, anchor: Anchor, corrections: Sequence[Correction], config: Learner
) -> tuple[Correction, ...]:
    """Return the corrections with what the anchor says of the pairs among them.

    Where preferences have no weight, or the anchor gives no finite number, none is a pair.
    """
    found = [replace(one, given=None) for one in corrections]
    places = [place for place, one in enumerate(corrections) if one.given]
    if not config.preference_weight or not places:
        return tuple(found)
    pairs = [corrections[place] for place in places]
    asked = [*(one.wanted for one in pairs), *(one.given for one in pairs if one.given)]
    scores = [tuple(row) for row in anchor.logprobs(policy, asked, config.bucket_tokens)]
    halves = scores[: len(pairs)], scores[len(pairs) :]
    for place, wanted, given in zip(places, *halves, strict=True):
        if all(map(math.isfinite, (*wanted, *given))):
            found[place] = replace(corrections[place], wanted_anchor=wanted, given_anchor=given)
    return tuple(found)


def add_gradients(
    policy: Policy, corrections: Sequence[Correction], config: Learner, bounds: Bounds
) -> CorrectionLosses:
    """Add the gradients of all corrections, each by its share, to those of the adapters."""
    imitation, preference = 0.0, 0.0
    groups = list(_grouped(corrections, config.bucket_tokens))
    for group in policy.share(groups, with_gradient=True):
        imitated, preferred = _losses(policy, group, bounds)
        total = config.correction_weight * imitated + config.preference_weight * preferred
        (total / config.length_scale).backward()
        imitation += float(imitated.detach())
        preference += float(preferred.detach())
    return CorrectionLosses(imitation / config.length_scale, preference)


def _losses(policy: Policy, group: Sequence[Correction], bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Return the sums over a group of Σ_t −log pi(wanted) and of its pairs' losses, by share."""
    given = [one.given for one in group if one.given]
    sequences = [*(one.wanted for one in group), *given]
    bucket = bucket_of(sequences)
    logp_bt, _ = policy.score(bucket)
    mask_bt = bucket.mask_bt
    wanted = slice(len(group))
    share_b = torch.tensor([one.share for one in group])
    imitated = -(share_b * (logp_bt[wanted] * mask_bt[wanted]).sum(1)).sum()
    if not given:
        return imitated, torch.zeros(())
    anchors = [*(one.wanted_anchor for one in group), *(one.given_anchor for one in group)]
    anchor_bt = padded(anchors, mask_bt.shape[1])
    terms = Terms(
        logp_bt=logp_bt,
        prox_bt=logp_bt.detach(),
        mu_bt=logp_bt.detach(),
        anchor_bt=anchor_bt,
        advantage_b=torch.ones(len(sequences)),
        mask_bt=mask_bt,
    )
    return imitated, (share_b * dpo(terms, bounds).loss_b[wanted]).sum()


def _grouped(corrections: Sequence[Correction], tokens: int) -> Iterator[list[Correction]]:
    """Yield groups of about ``tokens`` tokens and of like length, pairs apart from the rest."""
    pairs = sorted((one for one in corrections if one.given), key=_length)
    alone = sorted((one for one in corrections if not one.given), key=_length)
    for part, room in ((pairs, tokens // 2), (alone, tokens)):
        for places in grouped([_length(one) for one in part], room):
            yield [part[place] for place in places]


def _length(correction: Correction) -> int:
    return max(len(correction.wanted), len(correction.given or ()))
