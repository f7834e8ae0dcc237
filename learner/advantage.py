"""What each scored experience counts in the loss: a weight by its user, and an advantage.

Shape suffixes: b experiences, k reward and cost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from statistics import fmean
from typing import Any, Protocol

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from contracts.settings import Learner
from learner.constraint import constrained, next_multiplier, share_of_reward
from learner.experience import BASELINE, Experience
from learner.losses import odds_of
from learner.micro_batch import MicroBatch
from learner.revision import Curve, Lesson
from learner.scoring import Scored
from learner.value import LARGEST_ADVANTAGE, Spread, ValueHead, advantages


class Baseline(Protocol):
    """The part of the training state that advantages come from, and that learns with them."""

    value: ValueHead
    value_optimizer: torch.optim.Optimizer
    spread: Spread
    multiplier: float


class Pushed(Struct, frozen=True):
    """How ``far`` a step pushed an answer per unit of its weight, at what log-probability;
    ``plain``: by the advantage itself, whatever the loss that is set makes of one."""

    far: float
    logp: float
    plain: bool


class Weighed(Struct, frozen=True):
    """Experiences with their weights, which add up to 1 unless `scaled`, and their advantages.

    ``debt_b`` marks those whose advantage is what is owed. ``rewards`` is what each was taught for,
    ``curves`` what it would have been taught for any other, ``shares`` how much each kind of
    ``imputed`` counts beside an observed reward, ``stride`` how long steps are beside those of a
    full batch.
    """

    scored: tuple[Scored, ...]
    advantage_b: Tensor
    weight_b: Tensor
    debt_b: Tensor
    rewards: tuple[float, ...]
    curves: tuple[Curve, ...]
    shares: dict[str, float] = {}
    value_loss: float = 0.0
    stride: float = 1.0

    def scaled(self, fill: float, breadth: float) -> Weighed:
        """Return these with as much of their weights as a batch is full, and as many users speak in
        it; what is owed keeps its weight, and lengthens the steps of a batch that is not full."""
        weight_b = torch.where(self.debt_b, self.weight_b, fill * breadth * self.weight_b)
        owed = float(self.weight_b[self.debt_b].sum())
        return replace(self, weight_b=weight_b, stride=fill + (1.0 - fill) * owed)

    def lessons(self, pushes: Sequence[Pushed]) -> tuple[Lesson, ...]:
        """Return what a step on these teaches, which pushed each so."""
        return tuple(
            Lesson(
                e.decision_id,
                reward,
                weight * pushed.far,
                weight,
                replace(curve, odds=odds_of(pushed.logp), plain=float(pushed.plain)),
                debt,
                self.shares.get(e.imputed, 1.0),
                pushed.logp,
                e.decided_at.timestamp(),
            )
            for e, pushed, reward, weight, curve, debt in zip(
                (one.experience for one in self.scored),
                pushes,
                *(self.rewards, self.weight_b.tolist(), self.curves, self.debt_b.tolist()),
                strict=True,
            )
        )


_NONE = torch.zeros(0)
NOTHING = Weighed((), _NONE, _NONE, _NONE.bool(), (), ())


def user_weights(users: Sequence[str], activity: Mapping[str, int]) -> list[float]:
    """Return weights that add up to 1, with which every user counts alike over time.

    A sample weighs as much as its user has few of them in ``activity``, the number among the newest
    samples (here at least those given). Within a batch alone, whoever is in every batch would
    count as often as there are batches.
    """
    here = Counter(users)
    raw = [1.0 / max(activity.get(user, 0), here[user]) for user in users]
    total = sum(raw)
    return [one / total for one in raw]


def breadth_of(fresh: Sequence[Experience], raters: Sequence[str]) -> float:
    """Return how many users fresh samples count for, beside as many of the newest samples of all;
    at most 1.

    ``raters`` are the users of the newest samples, these included, of whom each has one vote: who
    fills whole batches alone has no more. Half of what is usual is 1: so much may be chance.
    """
    if not fresh:
        return 1.0
    counts = Counter(raters)
    here = fmean(1.0 / max(counts[e.user_id], 1) for e in fresh)
    return min(1.0, 2.0 * here * len(raters) / len(counts))


def observe_costs(state: Baseline, batch: MicroBatch, config: Learner) -> float | None:
    """Move λ by the costs of fresh decisions; return their mean, each user weighing alike, None
    where there are none.

    So do those that nobody said anything about: who breaks a rule and keeps silent broke it. They
    are weighed among themselves, for the activity of their users is not known. Those whose reward
    is the monitor's or the default's are among them, wherever harmless ones are: beside the rated
    ones there would be the violations of the silent, and not their harmless answers. Where fewer
    users than usual speak, λ moves by as much less of what is said.
    """
    quiet = (*(e for e in batch.fresh if e.unrated), *batch.silent)
    rated = [e for e in batch.fresh if not e.unrated]
    if all(e.violation for e in quiet):
        quiet, rated = batch.silent, [*batch.fresh]
    speaking, silent = ([e.user_id for e in group] for group in (rated, quiet))
    share = len(set(speaking)) / max(len(set(speaking)) + len(set(silent)), 1)
    weights = [share * one for one in user_weights(speaking, batch.activity)]
    weights += [(1.0 - share) * one for one in user_weights(silent, {})]
    costs = [float(e.violation) for e in (*rated, *quiet)]
    reach = share * batch.breadth + (1.0 - share)
    state.multiplier = next_multiplier(
        state.multiplier, costs, weights, config.constraint, reach=reach
    )
    if not costs:
        return None
    return sum(cost * weight for cost, weight in zip(costs, weights, strict=True))


class BaselineState(Struct, frozen=True):
    """What a lesson of the baseline changes, as it was before."""

    value: dict[str, Any]
    optimizer: dict[str, Any]
    spread: Spread


def baseline_of(state: Baseline) -> BaselineState:
    """Return a copy of what the next `weigh` will change."""
    value, optimizer = state.value.state_dict(), state.value_optimizer.state_dict()
    return BaselineState(deepcopy(value), deepcopy(optimizer), state.spread)


def put_back(state: Baseline, before: BaselineState) -> None:
    """Undo what `weigh` has changed since."""
    state.value.load_state_dict(before.value)
    state.value_optimizer.load_state_dict(before.optimizer)
    state.spread = before.spread


def weigh(
    state: Baseline,
    scored: Sequence[Scored],
    owed: Mapping[str, float],
    activity: Mapping[str, int],
    config: Learner,
) -> Weighed:
    """Return weights and advantages of what is used, after one lesson of the baseline.

    ``owed`` maps decisions to the coefficient that is still to be taught, ``activity`` users to
    the number of their samples of late. The advantage uses the
    baseline from before it saw these rewards.
    """
    if not scored:
        return NOTHING
    debt_b = torch.tensor([one.experience.decision_id in owed for one in scored])
    owed_b = torch.tensor([owed.get(one.experience.decision_id, 0.0) for one in scored])
    weights, shares = _weights([one.experience for one in scored], activity, config)
    weight_b = torch.tensor(weights)
    advantage_b, rewards, curves, value_loss = _advantages(state, scored, debt_b, weight_b, config)
    paid_b = torch.clamp(owed_b / weight_b, -LARGEST_ADVANTAGE, LARGEST_ADVANTAGE)
    return Weighed(
        tuple(scored),
        torch.where(debt_b, paid_b, advantage_b),
        weight_b,
        debt_b,
        rewards,
        curves,
        shares,
        value_loss,
    )


def _weights(
    experiences: Sequence[Experience], activity: Mapping[str, int], config: Learner
) -> tuple[list[float], dict[str, float]]:
    """Return weights that add up to 1, those of `user_weights`, and the share that is left of them
    to each kind of ``imputed``.

    However many answers of a user nobody rated, those that somebody did keep their weight. Nor do
    the imputed ones of a kind together count more than their part of as many observed ones as they
    have users: those who never rate are not among ``activity``, and would weigh as much as there
    are batches. That part is ``imputed_weight`` of what a model guessed, and all of what a monitor
    saw.
    """
    here = Counter((e.user_id, e.imputed) for e in experiences)
    raw = [1.0 / max(activity.get(e.user_id, 0), here[e.user_id, e.imputed]) for e in experiences]
    by_kind: dict[str, list[float]] = defaultdict(list)
    for one, e in zip(raw, experiences, strict=True):
        by_kind[e.imputed].append(one)
    observed = by_kind.pop("", [])
    shares = {"": 1.0}
    for kind, imputed in by_kind.items():
        part = 1.0 if kind == BASELINE else config.imputed_weight
        users = sum(1 for _, of_kind in here if of_kind == kind)
        most = users * fmean(observed) / sum(imputed) if observed else 1.0
        shares[kind] = part * min(1.0, most)
    whole = [one * shares[e.imputed] for one, e in zip(raw, experiences, strict=True)]
    total = sum(whole)
    return [one / total for one in whole], shares


def _advantages(
    state: Baseline, scored: Sequence[Scored], debt_b: Tensor, weight_b: Tensor, config: Learner
) -> tuple[Tensor, tuple[float, ...], tuple[Curve, ...], float]:
    """Return the constrained advantage of each, the reward it is of, that of any other reward, and
    the loss of the baseline's lesson.

    A debt says nothing about a prompt: what was retracted has no reward, what was revised is
    repeated later. Nor does a reward that was imputed; that of `BASELINE` is found here.
    """
    ends_bh = torch.stack([one.end_h for one in scored])
    features_bf = torch.tensor([[one.experience.user_reward_mean or 0.0] for one in scored])
    seen = [(one.experience.reward, float(one.experience.violation)) for one in scored]
    seen_bk = torch.tensor(seen)
    with torch.no_grad():
        expected_bk = state.value(ends_bh, features_bf)
    alone_b = torch.tensor([one.experience.imputed == BASELINE for one in scored])
    seen_bk[alone_b, 0] = expected_bk[alone_b, 0]
    residual_bk = seen_bk - expected_bk
    rewards = tuple(  # an observed one as it is: rounded, it would differ from itself when revised
        float(expected) if alone else reward
        for expected, alone, (reward, _) in zip(expected_bk[:, 0], alone_b, seen, strict=True)
    )
    new_b = ~debt_b & torch.tensor([not one.experience.imputed for one in scored])
    value_loss = 0.0
    if bool(new_b.any()):
        state.spread = state.spread.seen(residual_bk[new_b, 0])
        weight_b1 = (weight_b[new_b] / weight_b[new_b].sum())[:, None]
        for _ in range(config.inner_epochs):
            state.value_optimizer.zero_grad()
            error_bk = state.value(ends_bh[new_b], features_bf[new_b]) - seen_bk[new_b]
            loss = (weight_b1 * error_bk.pow(2)).sum()
            loss.backward()
            if not _is_finite(state.value):
                break
            state.value_optimizer.step()
            value_loss = float(loss.detach())
    reward_b = advantages(residual_bk[:, 0], state.spread)
    cost_b = advantages(residual_bk[:, 1], state.spread)
    whole_b = constrained(reward_b, cost_b, state.multiplier)
    advantage_b = torch.clamp(whole_b, -LARGEST_ADVANTAGE, LARGEST_ADVANTAGE)
    share = share_of_reward(state.multiplier)
    slope, reach = 1.0 / (state.spread.scale() * share), LARGEST_ADVANTAGE / share
    prices = constrained(torch.zeros_like(cost_b), cost_b, state.multiplier).tolist()
    curves = tuple(
        Curve(slope, expected, reach, price)
        for expected, price in zip(expected_bk[:, 0].tolist(), prices, strict=True)
    )
    return advantage_b, rewards, curves, value_loss


def _is_finite(value: ValueHead) -> bool:
    gradients = [one.grad for one in value.parameters() if one.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)
