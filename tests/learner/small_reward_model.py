"""A signed reward model of a few samples, for the tests of what uses one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from contracts.events import Sample
from contracts.settings import Settings
from learner.buckets import TokenSequence
from learner.experience import experience_of
from learner.reward_card import RewardRecipe
from learner.reward_fitting import fit, sliced
from learner.reward_lessons import Read
from learner.reward_training import Rated
from learner.reward_version import new_trunk, write_version


def small_reward_model(
    settings: Settings, make_sample: Callable[..., Sample], out: Path, seed: int = 0
) -> Path:
    """Train on eighty samples that no other test uses, and return the version's directory."""
    recipe = RewardRecipe(members=3, max_tokens=32, rank=4, seed=seed)
    samples = [experience_of(make_sample(500 + n)) for n in range(80)]
    answers = [TokenSequence(e.prompt_ids, e.token_ids) for e in samples]
    lessons = [Rated(e.user_id, a, e.reward) for e, a in zip(samples, answers, strict=True)]
    trunk = new_trunk(settings.policy.model, recipe)
    fitted = fit(trunk, sliced(lessons, recipe), recipe)
    moment = samples[-1].decided_at
    read = Read(
        lessons=(), first_offset=0, next_offset=80, as_of=moment, newest_feedback_time=moment
    )
    return write_version(settings, out, trunk, fitted, read, recipe)
