"""A replay asks the feature store only for users' means that no ledger can have."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from contracts.events import Sample
from learner.experience import BASELINE, Experience, experience_of
from learner.ledger import NO_REWARD, SUPERSEDED, outcome_of
from learner.ledger_means import LedgerMeans
from learner.version_line import Link

MakeSample = Callable[..., Sample]


@pytest.mark.parametrize(
    ("imputed", "violation", "outcome", "asked"),
    [
        ("a reward model", False, NO_REWARD, False),
        (BASELINE, True, NO_REWARD, False),
        ("", False, NO_REWARD, True),
        ("", False, SUPERSEDED, True),
    ],
)
def test_what_was_looked_up_is_known_also_where_it_taught_nothing(
    make_sample: MakeSample, imputed: str, violation: bool, outcome: str, asked: bool
) -> None:
    sample = make_sample(1, violation=violation)
    experience = replace(experience_of(sample), imputed=imputed, user_reward_mean=0.25)
    line = outcome_of(experience, outcome, {})
    part = cast("list[Link]", [SimpleNamespace(ledger=lambda: [line])])

    def otherwise(experiences: object) -> list[float | None]:
        return [0.75]

    means = LedgerMeans(part, otherwise)
    again: list[Experience] = [replace(experience, user_reward_mean=None)]
    assert means(again) == [0.75 if asked else 0.25]
    assert means.looked_up == int(asked)
