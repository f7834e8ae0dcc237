"""Makes a reward model of lessons: trained on the oldest, calibrated on newer, held to the newest.

What a model says of answers like those it was trained on is no measure of it: users, questions and
policy move on. So the split is by time, and the errors told are of the last slice of the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from learner.calibration import (
    Calibration,
    Errors,
    Labels,
    calibrate,
    errors_on_pairs,
    errors_on_rewards,
)
from learner.policy import Policy
from learner.raters import Floats, Raters, raters_of
from learner.reward_card import LessonCounts, RewardRecipe
from learner.reward_model import RewardHeads, member_scores, member_values
from learner.reward_training import Pair, Rated, RewardLesson, answers_of, train


class Slices(Struct, frozen=True):
    """Lessons in the order of the log: to train on, to calibrate on, to tell the errors on."""

    trained: tuple[RewardLesson, ...]
    calibrated: tuple[RewardLesson, ...]
    told: tuple[RewardLesson, ...]


class Fitted(Struct, frozen=True, kw_only=True):
    """A model but for its trunk, which learned in place; see `RewardModelCard` for the figures."""

    heads: RewardHeads
    steps: int
    planned_steps: int
    lessons: LessonCounts
    calibration: Calibration
    on_rewards: Errors | None
    on_pairs: Errors | None


def fit(
    trunk: Policy,
    slices: Slices,
    recipe: RewardRecipe,
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> Fitted:
    """Train, calibrate and tell the errors, each on a slice of its own."""
    trained = train(trunk, slices.trained, recipe, seconds_left)
    heads = trained.heads
    calibration = calibration_of(scores_of(trunk, heads, slices.calibrated, recipe))
    told = scores_of(trunk, heads, slices.told, recipe)
    on_rewards, on_pairs = errors_of(told, calibration)
    return Fitted(
        heads=heads,
        steps=trained.steps,
        planned_steps=trained.planned_steps,
        lessons=LessonCounts(
            trained_rewards=_count(slices.trained, Rated),
            trained_pairs=_count(slices.trained, Pair),
            calibrated_rewards=_count(slices.calibrated, Rated),
            calibrated_pairs=_count(slices.calibrated, Pair),
        ),
        calibration=calibration,
        on_rewards=on_rewards,
        on_pairs=on_pairs,
    )


def sliced(lessons: Sequence[RewardLesson], recipe: RewardRecipe) -> Slices:
    """Cut lessons, oldest first, by the shares of the recipe; the last slice is what is left."""
    first = int(recipe.trained_share * len(lessons))
    second = first + int(recipe.calibrated_share * len(lessons))
    return Slices(tuple(lessons[:first]), tuple(lessons[first:second]), tuple(lessons[second:]))


def _count(lessons: Sequence[RewardLesson], kind: type[RewardLesson]) -> int:
    return sum(1 for lesson in lessons if isinstance(lesson, kind))


class Scores(Struct, frozen=True):
    """Members' scores of a slice: of rewarded answers, n×k, and of pairs, 2×n×k."""

    rated_nk: Floats
    rewards_n: Floats
    rated_by: Raters
    pairs_2nk: Floats
    paired_by: Raters


def scores_of(
    trunk: Policy, heads: RewardHeads, lessons: Sequence[RewardLesson], recipe: RewardRecipe
) -> Scores:
    """Return the members' scores of a slice."""
    answers, firsts = answers_of(lessons)
    scores_ak = member_scores(trunk, heads, answers, recipe.max_tokens)
    rated = [(f, one) for f, one in zip(firsts, lessons, strict=True) if isinstance(one, Rated)]
    pairs = [(f, one) for f, one in zip(firsts, lessons, strict=True) if isinstance(one, Pair)]
    first_of_pairs = [first for first, _ in pairs]
    return Scores(
        rated_nk=scores_ak[[place for place, _ in rated]],
        rewards_n=np.array([one.reward for _, one in rated]),
        rated_by=raters_of([one.user for _, one in rated], recipe.user_lessons),
        pairs_2nk=np.stack([scores_ak[first_of_pairs], scores_ak[[f + 1 for f in first_of_pairs]]]),
        paired_by=raters_of([one.user for _, one in pairs], recipe.user_lessons),
    )


def calibration_of(found: Scores) -> Calibration:
    """Return the calibration of the members' mean score on a slice."""
    return calibrate(
        Labels(
            scores_n=found.rated_nk.mean(axis=1),
            good_n=(found.rewards_n + 1.0) / 2.0,
            rated_by=found.rated_by,
            compared_2n=found.pairs_2nk.mean(axis=2),
            paired_by=found.paired_by,
        )
    )


def errors_of(found: Scores, calibration: Calibration) -> tuple[Errors | None, Errors | None]:
    """Return the errors on a slice's (rewarded answers, pairs); None for what it has none of."""
    on_rewards = on_pairs = None
    if len(found.rated_nk):
        spreads = member_values(found.rated_nk, calibration).std(axis=1).tolist()
        on_rewards = errors_on_rewards(
            calibration, found.rated_nk.mean(axis=1), found.rewards_n, found.rated_by, spreads
        )
    if found.pairs_2nk.shape[1]:
        pairs_2n = found.pairs_2nk.mean(axis=2)
        spreads = member_values(found.pairs_2nk, calibration).std(axis=2).ravel().tolist()
        on_pairs = errors_on_pairs(calibration, pairs_2n[0] - pairs_2n[1], found.paired_by, spreads)
    return on_rewards, on_pairs
