"""The objective of one micro-batch and one optimizer step on it, bucket by bucket.

Shape suffixes: b experiences, t response tokens (padded and masked).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from msgspec import Struct
from torch import Tensor

from contracts.settings import Learner
from learner.advantage import Pushed
from learner.buckets import Bucket, bucketed, padded
from learner.experience import BASELINE, Experience
from learner.losses import (
    IMITATE,
    LOSSES,
    NEED_LOGPROBS,
    OTHERWISE,
    Bounds,
    LossValue,
    Terms,
    anchor_penalty,
    odds_of,
    push,
)
from learner.pairs import Correction, add_gradients
from learner.policy import Policy
from learner.practice import Practised, add_practice_gradients
from learner.scoring import Scored, sequence_of


class Objective(Struct, frozen=True):
    """What a step descends: weighted experiences, corrections, and answers drawn for practice.

    ``owed`` are the decisions among them whose advantage is what is owed (`learner.revision`),
    ``fill`` is what practice counts.
    """

    scored: tuple[Scored, ...]
    advantage_b: Tensor
    weight_b: Tensor
    corrections: tuple[Correction, ...] = ()
    owed: frozenset[str] = frozenset()
    practised: tuple[Practised, ...] = ()
    fill: float = 1.0


class StepStats(Struct, frozen=True, kw_only=True):
    """Figures of one step; losses are those before it."""

    policy_loss: float = 0.0
    kl: float = 0.0
    correction_loss: float = 0.0
    preference_loss: float = 0.0
    practice_loss: float = 0.0
    clip_share: float = 0.0
    mean_weight: float = 1.0
    grad_norm: float = 0.0
    tokens: int = 0
    stepped: bool = False
    skipped: bool = False


class Passed(Struct, frozen=True, kw_only=True):
    """What the passes of a step gave besides gradients: sums over all sequences.

    ``prox`` are the log-probabilities of each scored experience's tokens, by its place.
    """

    policy_loss: float
    kl: float
    clipped: float
    weight_sum: float
    tokens: int
    correction_loss: float
    preference_loss: float
    practice_loss: float
    prox: dict[int, list[float]]


def add_passes(policy: Policy, objective: Objective, config: Learner) -> Passed:
    """Put the objective's gradient in the place of the adapters' own, and return its figures.

    Gradients add up over the buckets, so the result does not depend on their size beyond rounding.
    """
    for parameter in policy.adapters().values():
        parameter.grad = None
    sums = _Part(torch.zeros(()), torch.zeros(()), 0.0, 0.0)
    prox: dict[int, list[float]] = {}
    tokens, drift = 0, _drift(objective.scored)
    sequences = [sequence_of(one.experience) for one in objective.scored]
    for bucket in policy.share(bucketed(sequences, config.bucket_tokens), with_gradient=True):
        part, logp_bt = _bucket_loss(policy, objective, bucket, config, drift)
        (part.policy + config.kl_weight * part.kl).backward()
        sums = _Part(
            sums.policy + part.policy.detach(),
            sums.kl + part.kl.detach(),
            sums.clipped + part.clipped,
            sums.weight_sum + part.weight_sum,
        )
        tokens += int(bucket.mask_bt.sum())
        for place, row_t, mask_t in zip(bucket.members, logp_bt, bucket.mask_bt, strict=True):
            prox[place] = row_t[mask_t].tolist()
    bounds = bounds_of(config)
    corrected = add_gradients(policy, objective.corrections, config, bounds)
    practised = (objective.practised, objective.fill)
    practice_loss = add_practice_gradients(policy, *practised, config, bounds)
    policy.ranks.add_gradients(policy.adapters())
    policy_loss, kl, clipped, weight_sum, scored, imitation, preference, practice = (
        policy.ranks.total(
            *(float(sums.policy), float(sums.kl), sums.clipped, sums.weight_sum, float(tokens)),
            *(corrected.imitation, corrected.preference, practice_loss),
        )
    )
    return Passed(
        policy_loss=policy_loss,
        kl=kl,
        clipped=clipped,
        weight_sum=weight_sum,
        tokens=round(scored),
        correction_loss=imitation,
        preference_loss=preference,
        practice_loss=practice,
        prox=policy.ranks.gathered(prox),
    )


def descend(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    config: Learner,
    passed: Passed | None = None,
) -> StepStats:
    """Take one optimizer step over the whole micro-batch.

    ``passed``: its passes were made already, and nothing has changed since. A step whose gradient
    is not finite is skipped.
    """
    passed = passed or add_passes(policy, objective, config)
    if not (objective.scored or objective.corrections or objective.practised):
        return StepStats()
    parameters = list(policy.adapters().values())
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
    if not math.isfinite(norm):
        return StepStats(tokens=passed.tokens, skipped=True)
    optimizer.step()
    return StepStats(
        policy_loss=passed.policy_loss,
        kl=passed.kl,
        correction_loss=passed.correction_loss,
        preference_loss=passed.preference_loss,
        practice_loss=passed.practice_loss,
        clip_share=passed.clipped / max(passed.tokens, 1),
        mean_weight=passed.weight_sum / passed.tokens if passed.tokens else 1.0,
        grad_norm=norm,
        tokens=passed.tokens,
        stepped=True,
    )


def needs_prox(experiences: Sequence[Experience], owed: frozenset[str], config: Learner) -> bool:
    """Return whether a loss of theirs is a function of what the policy said of the whole batch.

    If not, the passes of the first step can tell it at once.
    """
    return config.loss == OTHERWISE or any(_is_unfit(one, owed, config) for one in experiences)


def pushes(objective: Objective, config: Learner) -> list[Pushed]:
    """Return how far a step pushes each answer.

    The answers have been scored: what the policy said of each before the step is known.
    """
    found = []
    bounds = bounds_of(config)
    for one, advantage in zip(objective.scored, objective.advantage_b.tolist(), strict=True):
        logp = sum(one.prox)
        unfit = _is_unfit(one.experience, objective.owed, config)
        far = advantage if unfit else push(config.loss, bounds, advantage, odds_of(logp))
        found.append(Pushed(far, logp, plain=unfit))
    return found


class _Part(Struct, frozen=True):
    policy: Tensor
    kl: Tensor
    clipped: float
    weight_sum: float


def _bucket_loss(
    policy: Policy, objective: Objective, bucket: Bucket, config: Learner, drift: float
) -> tuple[_Part, Tensor]:
    """Return a bucket's losses, and the log-probabilities that they are of."""
    members = list(bucket.members)
    width = bucket.rows_bt.shape[1]
    chosen = [objective.scored[place] for place in members]
    logp_bt, _ = policy.score(bucket)
    is_first = not all(one.prox for one in chosen)
    prox_bt = logp_bt.detach() if is_first else padded([one.prox for one in chosen], width)
    logged_b1 = torch.tensor([[bool(one.experience.logprobs)] for one in chosen])
    mu_bt = padded([one.experience.logprobs for one in chosen], width).where(logged_b1, prox_bt)
    anchor_bt = padded([one.anchor for one in chosen], width)
    terms = Terms(
        logp_bt=logp_bt,
        prox_bt=prox_bt,
        mu_bt=mu_bt,
        anchor_bt=anchor_bt,
        advantage_b=objective.advantage_b[members],
        mask_bt=bucket.mask_bt,
        drift=drift,
    )
    unfit = [_is_unfit(one.experience, objective.owed, config) for one in chosen]
    value = _losses(terms, unfit, config)
    share_b = objective.weight_b[members] / config.length_scale
    penalty_bt = bucket.mask_bt * anchor_penalty(logp_bt, anchor_bt)
    part = _Part(
        (share_b * value.loss_b).sum(),
        (share_b * penalty_bt.sum(1)).sum(),
        float(value.stopped_bt.sum()),
        float((value.weight_bt * bucket.mask_bt).sum()),
    )
    return part, logp_bt.detach()


def _is_unfit(experience: Experience, owed: frozenset[str], config: Learner) -> bool:
    """Return whether the loss that is set cannot teach this: it lacks what that needs.

    A debt may have to take back what was taught, and imitation takes nothing back; nor does `awr`
    discourage anything.
    """
    if config.loss in NEED_LOGPROBS:
        return not experience.logprobs
    if config.loss == "awr" and experience.imputed == BASELINE:
        return True
    return config.loss in IMITATE and experience.decision_id in owed


def _losses(terms: Terms, unfit: Sequence[bool], config: Learner) -> LossValue:
    """Return each answer's loss: the one that is set, or the other one where that is unfit."""
    bounds = bounds_of(config)
    if not any(unfit):
        return LOSSES[config.loss](terms, bounds)
    places = sorted(range(len(unfit)), key=lambda place: not unfit[place])
    count = sum(unfit)
    parts = (
        LOSSES[OTHERWISE](terms.rows(places[:count]), bounds),
        LOSSES[config.loss](terms.rows(places[count:]), bounds),
    )
    back = torch.argsort(torch.tensor(places))
    return LossValue(
        torch.cat([part.loss_b for part in parts])[back],
        torch.cat([part.weight_bt for part in parts])[back],
        torch.cat([part.stopped_bt for part in parts])[back],
    )


def bounds_of(config: Learner) -> Bounds:
    """Return the bounds of the losses as set."""
    return Bounds(
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        importance_cap=config.importance_cap,
        awr_temperature=config.awr_temperature,
        beta=config.beta,
    )


def _drift(scored: Sequence[Scored]) -> float:
    """Return how far the policy was from its anchor before the update, per answer in the batch."""
    moved = sum(sum(one.prox) - sum(one.anchor) for one in scored)
    return max(moved / max(len(scored), 1), 0.0)
