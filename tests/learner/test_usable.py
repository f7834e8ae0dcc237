"""What cannot be learned from is kept without its tokens, and changes nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
import torch

from contracts.judges import is_judge
from contracts.settings import Constraint, Settings
from learner.adapters import load_policy
from learner.experience import Experience, experience_of
from learner.imputation import impute
from learner.progress import Beside, Progress, advance
from learner.train_state import TrainState, new_train_state
from learner.usable import Limits, trimmed
from tests.learner.conftest import MakeSample

LIMITS = Limits(64, 48, (7, 8, 3))
PROMPT, ANSWER, LONG = (10, 11, 12), (20, 3), (20,) * 100
JUDGE = next(name for name in (f"j{n}" for n in range(99)) if is_judge("assistant", name, 0.2))
PEOPLE = [name for name in (f"u{n}" for n in range(99)) if not is_judge("assistant", name, 0.2)]


@pytest.fixture
def priced(settings: Settings) -> Settings:
    price = Constraint(limit=0.1, multiplier=2.0, rate=1.0, safe_answer="w1")
    learner = msgspec.structs.replace(settings.learner, constraint=price)
    return msgspec.structs.replace(settings, learner=learner)


def _experience(make_sample: MakeSample, number: int, **changes: object) -> Experience:
    sample = make_sample(
        number,
        user_id=PEOPLE[number],
        prompt_token_ids=PROMPT,
        token_ids=ANSWER,
        logprobs=(-3.0,) * 2,
    )
    return msgspec.structs.replace(experience_of(sample, offset=number), **changes)


@pytest.mark.parametrize(
    ("changes", "reason", "uncorrected", "kept"),
    [
        ({}, "", False, (PROMPT, ANSWER, ())),
        ({"token_ids": LONG}, "too-long", False, ((), (), ())),
        ({"prompt_ids": (), "token_ids": LONG}, "no-tokens", False, ((), (), ())),
        ({"prompt_ids": LONG, "token_ids": ()}, "no-tokens", False, ((), (), ())),
        ({"token_ids": (48,)}, "unknown-token", False, ((), (), ())),
        ({"temperature": -1.0}, "no-temperature", False, ((), (), ())),
        ({"correction_ids": LONG}, "", True, (PROMPT, ANSWER, ())),
        ({"correction_ids": (48,)}, "", True, (PROMPT, ANSWER, ())),
        ({"correction_ids": (9, 3)}, "", False, (PROMPT, ANSWER, (9, 3))),
        ({"token_ids": LONG, "correction_ids": (9, 3)}, "too-long", False, (PROMPT, (), (9, 3))),
        ({"token_ids": LONG, "correction_ids": LONG}, "too-long", True, ((), (), ())),
        (
            {"temperature": -1.0, "correction_ids": (9, 3)},
            *("no-temperature", False, (PROMPT, ANSWER, (9, 3))),
        ),
        ({"violation": True, "token_ids": LONG}, "too-long", False, (PROMPT, (), ())),
        ({"violation": True, "prompt_ids": LONG[:62]}, "", True, (LONG[:62], ANSWER, ())),
        ({"violation": True, "prompt_ids": LONG}, "too-long", True, ((), (), ())),
    ],
)
def test_only_what_can_be_learned_from_keeps_its_tokens(
    make_sample: MakeSample,
    changes: dict[str, object],
    reason: str,
    uncorrected: bool,
    kept: tuple[tuple[int, ...], ...],
) -> None:
    one = _experience(make_sample, 1, **changes)
    found = trimmed(one, LIMITS)
    assert (found.unusable, found.uncorrected) == (reason, uncorrected)
    assert (found.prompt_ids, found.token_ids, found.correction_ids) == kept
    assert found.logprobs == (() if reason else one.logprobs)


def _cases(make_sample: MakeSample) -> list[list[Experience]]:
    """Rated answers, silent ones and answers of a judge; four corrections can be taught."""
    rated: list[dict[str, object]] = [
        {},
        {"token_ids": LONG, "correction_ids": (9, 3)},
        {"token_ids": LONG, "violation": True},
        {"violation": True, "correction_ids": LONG},
        {"temperature": -1.0, "correction_ids": (8, 3)},
        {"token_ids": (48,)},
        {"prompt_ids": (), "token_ids": LONG, "correction_ids": (9, 3)},
        {"correction_ids": LONG},
    ]
    silent: list[dict[str, object]] = [
        {"violation": True, "token_ids": LONG},
        {"token_ids": LONG},
        {"violation": True, "prompt_ids": LONG},
    ]
    quiet = {"censored": True, "reward": 0.0}
    return [
        [_experience(make_sample, 1 + n, **one) for n, one in enumerate(rated)],
        [_experience(make_sample, 20 + n, **quiet, **one) for n, one in enumerate(silent)],
        [_experience(make_sample, 30, user_id=JUDGE, token_ids=LONG, correction_ids=LONG)],
    ]


def _learned(settings: Settings, groups: Sequence[list[Experience]]) -> tuple[TrainState, Progress]:
    train = new_train_state(load_policy(settings), settings.learner)
    rated, silent, judged = groups
    beside = Beside(judged=judged, silent=impute(silent, None, settings))
    progress = Progress(policy="assistant", base=train.policy.base)
    return train, advance(train, progress, rated, settings, beside)


def test_nothing_that_can_be_used_teaches_anything_else_and_the_ledger_says_the_same(
    priced: Settings, make_sample: MakeSample
) -> None:
    groups = _cases(make_sample)
    train, whole = _learned(priced, groups)
    limits = Limits(priced.engine.max_model_len, train.policy.vocabulary_size, train.safe_ids)
    other, kept = _learned(priced, [[trimmed(e, limits) for e in group] for group in groups])

    assert kept.ledger == whole.ledger
    assert [line.outcome for line in kept.ledger[:8]] == [
        *("used", "too-long", "too-long", "used", "no-temperature", "unknown-token"),
        *("no-tokens", "used"),
    ]
    assert [line.correction for line in kept.ledger[:8]] == [
        *("", "person", "safe-answer", "", "person", "", "", ""),
    ]
    assert kept.stats == whole.stats
    adapters = other.policy.adapters()
    for name, weights in train.policy.adapters().items():
        assert torch.equal(weights, adapters[name])

    told = [e.offset for e in kept.replay.corrections]
    assert told == [2, 3, 5, 20]
    held = (*kept.replay.corrections, *kept.replay.recent, *kept.evaluation)
    assert all(len(e.prompt_ids + e.token_ids + e.correction_ids) <= 64 for e in held)
