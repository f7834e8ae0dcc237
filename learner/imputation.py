"""Gives answers that nobody said anything about a reward, so that they can teach.

It is the one that a reward model expects, the conservative mean − k·std: what the model is unsure
of is no reason to say more of the same. An answer that broke a rule teaches that alone: what the
monitor saw was observed, whoever kept silent. An observed reward is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from contracts.judges import is_judge
from contracts.settings import Settings
from learner.buckets import TokenSequence
from learner.experience import BASELINE, Experience
from learner.reward_model import RewardModel
from learner.turns import newest_in_turns
from learner.usable import unusable


def impute(
    silent: Sequence[Experience], model: RewardModel | None, settings: Settings
) -> list[Experience]:
    """Return the experiences in the order given, those that may teach with an imputed reward.

    A model gives one to as many as a batch has at most, the newest; as many violations at most
    have the baseline's, and none a model's unless the constraint is off. None are of judges.
    Deterministic given all arguments.
    """
    found = list(silent)
    if settings.learner.constraint.mode != "off":
        found = _priced(found, settings)
    if model is None or settings.learner.imputed_weight == 0.0:
        return found
    return _expected(found, model, settings)


def may_be_imputed(experience: Experience, settings: Settings) -> bool:
    """Tell whether `impute` may give a silent answer a reward, if its user does not judge."""
    config = settings.learner
    if experience.violation:
        return config.constraint.mode != "off"
    return bool(config.reward_model) and config.imputed_weight != 0.0


def _expected(
    silent: Sequence[Experience], model: RewardModel, settings: Settings
) -> list[Experience]:
    """Return the experiences, the newest fit ones of each user with a model's conservative reward.

    A violation that has no price teaches nothing: what was seen is not for a model to judge, least
    of all what the guard kept from users.
    """
    room, vocabulary = settings.engine.max_model_len, model.trunk.vocabulary_size
    fit = _newest(
        silent,
        [
            place
            for place in _unobserved(silent, settings)
            if not silent[place].violation and unusable(silent[place], room, vocabulary) is None
        ],
        settings,
    )
    answers = [TokenSequence(silent[place].prompt_ids, silent[place].token_ids) for place in fit]
    found = list(silent)
    for place, expected in zip(fit, model.score(answers), strict=True):
        reward = expected.conservative
        if math.isfinite(reward):  # else the whole step would be no number
            found[place] = replace(found[place], reward=reward, imputed=model.version)
    return found


def _priced(silent: Sequence[Experience], settings: Settings) -> list[Experience]:
    """Return the experiences, the newest violations of each user with the baseline's."""
    found = list(silent)
    broken = [place for place in _unobserved(silent, settings) if found[place].violation]
    for place in _newest(silent, broken, settings):
        found[place] = replace(found[place], imputed=BASELINE)
    return found


def _newest(silent: Sequence[Experience], places: Sequence[int], settings: Settings) -> list[int]:
    """Return as many of the places as a batch has, the newest of each user first."""
    users = [silent[place].user_id for place in places]
    return [places[turn] for turn in newest_in_turns(users, settings.learner.batch_samples)]


def _unobserved(silent: Sequence[Experience], settings: Settings) -> list[int]:
    """Return the places of those that nobody said anything about and that have no reward yet, none
    of judges."""
    name, share = settings.policy.name, settings.policy.judge_share
    return [
        place
        for place, e in enumerate(silent)
        if e.censored and not e.imputed and not is_judge(name, e.user_id, share)
    ]
