"""Trains a reward model: rewarded answers pointwise, pairs by Bradley-Terry, oldest lessons first.

Per member k, with s its score, y = (reward + 1)/2 and w its bootstrap weight of the lesson's user,

    rewarded  w · [−y·log σ(s) − (1 − y)·log σ(−s)]
    pair      w · −log σ(s_chosen − s_rejected)                 Bradley & Terry 1952

First the heads alone are fitted on the frozen base, where the problem is convex; then adapters and
heads go on together (first probe, then tune: Kumar et al., ICLR 2022).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.buckets import TokenSequence, bucket_of
from learner.policy import Policy
from learner.reward_card import RewardRecipe
from learner.reward_model import RewardHeads, answer_states, bucket_states, cut

_FIT_STEPS = 200
_WARM_UP = 0.1
_MOST_GRADIENT = 1.0


class Rated(Struct, frozen=True):
    """An answer and the reward it earned, in [-1, 1]."""

    user: str
    answer: TokenSequence
    reward: float


class Pair(Struct, frozen=True):
    """Two answers to one question, of which a person wanted the first."""

    user: str
    chosen: TokenSequence
    rejected: TokenSequence


RewardLesson = Rated | Pair


class Trained(Struct, frozen=True):
    """The heads (the trunk learned in place) and how many of the planned steps were taken."""

    heads: RewardHeads
    steps: int
    planned_steps: int


def train(
    trunk: Policy,
    lessons: Sequence[RewardLesson],
    recipe: RewardRecipe,
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> Trained:
    """Train adapters, in place, and heads; deterministic given all arguments but the time.

    ``seconds_left`` is asked before every step; when it has run out, training ends there.
    """
    heads = RewardHeads(trunk.hidden_size, recipe.members)
    weights_nk = lesson_weights([lesson.user for lesson in lessons], recipe)
    fit_heads(heads, trunk, lessons, weights_nk, recipe)
    steps_per_epoch = math.ceil(len(lessons) / recipe.batch)
    planned = recipe.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        [
            {"params": list(trunk.adapters().values()), "lr": recipe.learning_rate},
            {"params": list(heads.parameters()), "lr": recipe.head_learning_rate},
        ],
        weight_decay=0.0,
    )
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, planned))
    rng, step = random.Random(recipe.seed), 0
    for _ in range(recipe.epochs):
        order = rng.sample(range(len(lessons)), len(lessons))
        for at in range(0, len(order), recipe.batch):
            if seconds_left() <= 0.0:
                return Trained(heads, step, planned)
            chosen = order[at : at + recipe.batch]
            _step(trunk, heads, optimizer, lessons, chosen, weights_nk, recipe)
            pace.step()
            step += 1
    return Trained(heads, step, planned)


def lesson_weights(users: Sequence[str], recipe: RewardRecipe) -> Tensor:
    """Return how much each lesson counts for each member, n×k.

    Every member draws users with replacement (as Poisson counts: Oza & Russell 2001), so that
    members differ as much as the data let them. A user with many lessons counts as
    ``user_lessons`` of them.
    """
    counts, rng = Counter(users), np.random.default_rng(recipe.seed)
    names = sorted(counts)
    drawn_uk = rng.poisson(1.0, size=(len(names), recipe.members)).astype(np.float32)
    drawn_uk[:, drawn_uk.sum(axis=0) == 0.0] = 1.0
    places = {name: place for place, name in enumerate(names)}
    share_n = np.array([min(1.0, recipe.user_lessons / counts[user]) for user in users])
    found = drawn_uk[[places[user] for user in users]] * share_n[:, None]
    return torch.tensor(found, dtype=torch.float32)


def fit_heads(
    heads: RewardHeads,
    trunk: Policy,
    lessons: Sequence[RewardLesson],
    weights_nk: Tensor,
    recipe: RewardRecipe,
) -> None:
    """Fit the heads on the states of the frozen base; a convex problem, solved by L-BFGS."""
    laid_out = _laid_out(lessons)
    states_ah = answer_states(trunk, laid_out.answers, recipe.max_tokens, adapted=False)
    with torch.no_grad():
        heads.mean_h.copy_(states_ah.mean(0))
        heads.scale_h.copy_(states_ah.std(0, correction=0).clamp(min=1e-6))
    optimizer = torch.optim.LBFGS(
        heads.parameters(), max_iter=_FIT_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(heads(states_ah), laid_out, weights_nk) + penalty(heads, recipe)
        loss.backward()
        return loss

    optimizer.step(closure)


def penalty(heads: RewardHeads, recipe: RewardRecipe) -> Tensor:
    """Return −log of a prior under which a score has a standard deviation of ``prior_score``."""
    precision = heads.weight_kh.shape[1] / recipe.prior_score**2
    found: Tensor = 0.5 * precision * heads.weight_kh.pow(2).sum()
    return found


def _step(
    trunk: Policy,
    heads: RewardHeads,
    optimizer: torch.optim.Optimizer,
    lessons: Sequence[RewardLesson],
    chosen: Sequence[int],
    weights_nk: Tensor,
    recipe: RewardRecipe,
) -> None:
    """Take one step on some lessons, a few of like length at a time; a wild one is left out."""
    optimizer.zero_grad()
    by_length = sorted(chosen, key=lambda place: (_length(lessons[place]), place))
    for at in range(0, len(by_length), recipe.bucket):
        part = by_length[at : at + recipe.bucket]
        laid_out = _laid_out([lessons[place] for place in part])
        count = len(laid_out.answers)
        bucket = bucket_of([cut(each, recipe.max_tokens) for each in laid_out.answers])
        states_ah = torch.zeros(count, trunk.hidden_size)
        states_ah[list(bucket.members)] = bucket_states(trunk, bucket)
        loss = _loss(heads(states_ah), laid_out, weights_nk[part])
        (loss / (len(chosen) * recipe.members)).backward()
    (penalty(heads, recipe) / (len(lessons) * recipe.members)).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, _MOST_GRADIENT))
    if math.isfinite(norm):
        optimizer.step()


class _Layout(Struct, frozen=True):
    """Which answers belong to which lesson, and how good the rewarded ones were found."""

    answers: list[TokenSequence]
    pairs: list[int]
    pair_first: list[int]
    rated: list[int]
    rated_first: list[int]
    good_r1: Tensor


def _laid_out(lessons: Sequence[RewardLesson]) -> _Layout:
    answers, firsts = answers_of(lessons)
    pairs = [place for place, one in enumerate(lessons) if isinstance(one, Pair)]
    rated = [(place, one.reward) for place, one in enumerate(lessons) if isinstance(one, Rated)]
    return _Layout(
        answers,
        pairs,
        [firsts[place] for place in pairs],
        [place for place, _ in rated],
        [firsts[place] for place, _ in rated],
        torch.tensor([[(reward + 1.0) / 2.0] for _, reward in rated]).reshape(-1, 1),
    )


def _loss(scores_ak: Tensor, laid_out: _Layout, weights_nk: Tensor) -> Tensor:
    """Return the weighted sum of all members' losses, given the scores of all answers."""
    first_pk = scores_ak[laid_out.pair_first]
    second_pk = scores_ak[[place + 1 for place in laid_out.pair_first]]
    on_pairs = (-logsigmoid(first_pk - second_pk) * weights_nk[laid_out.pairs]).sum()
    score_rk, good_r1 = scores_ak[laid_out.rated_first], laid_out.good_r1
    loss_rk = -good_r1 * logsigmoid(score_rk) - (1.0 - good_r1) * logsigmoid(-score_rk)
    return on_pairs + (loss_rk * weights_nk[laid_out.rated]).sum()


def answers_of(lessons: Sequence[RewardLesson]) -> tuple[list[TokenSequence], list[int]]:
    """Return all answers in a row, and the place of each lesson's first."""
    answers: list[TokenSequence] = []
    firsts = []
    for lesson in lessons:
        firsts.append(len(answers))
        if isinstance(lesson, Pair):
            answers += [lesson.chosen, lesson.rejected]
        else:
            answers.append(lesson.answer)
    return answers, firsts


def _length(lesson: RewardLesson) -> int:
    return max(len(answer) for answer in answers_of([lesson])[0])


def _pace(step: int, planned: int) -> float:
    """Return the share of the learning rate: up in the first tenth, then down to nothing."""
    warm = max(_WARM_UP * planned, 1.0)
    return min((step + 1) / warm, max((planned - step) / max(planned - warm, 1.0), 0.0))
