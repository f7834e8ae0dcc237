"""Gives answers that nobody said anything about the reward that a reward model expects of them.

It is the conservative one, mean − k·std: what the model is unsure of is no reason to say more of
the same. An observed reward never comes here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from contracts.judges import is_judge
from contracts.settings import Settings
from learner.buckets import TokenSequence
from learner.experience import Experience
from learner.reward_model import RewardModel
from learner.update import unusable


def impute(
    unrewarded: Sequence[Experience], model: RewardModel | None, settings: Settings
) -> list[Experience]:
    """Return the experiences in the order given, those that may teach with an imputed reward.

    These are at most as many as a batch has, the newest ones; none without a model, and none of
    judges. Deterministic given all arguments.
    """
    config, policy = settings.learner, settings.policy
    if model is None or config.imputed_weight == 0.0:
        return list(unrewarded)
    room, vocabulary = settings.engine.max_model_len, model.trunk.vocabulary_size
    fit = [
        place
        for place, e in enumerate(unrewarded)
        if e.censored
        and unusable(e, room, vocabulary) is None
        and not is_judge(policy.name, e.user_id, policy.judge_share)
    ][-config.batch_samples :]
    answers = [
        TokenSequence(unrewarded[place].prompt_ids, unrewarded[place].token_ids) for place in fit
    ]
    found = list(unrewarded)
    for place, expected in zip(fit, model.score(answers), strict=True):
        reward = expected.conservative
        if math.isfinite(reward):  # else the whole step would be no number
            found[place] = replace(found[place], reward=reward, imputed=model.version)
    return found
