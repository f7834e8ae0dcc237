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


def test_a_silent_line_without_a_mean_is_asked_for_anew_where_batches_are_others(
    make_sample: MakeSample,
) -> None:
    """It may be one that the first run never asked for; a mean that is there stands."""
    experience = replace(
        experience_of(make_sample(1, violation=True)), imputed=BASELINE, user_reward_mean=None
    )
    for mean, same_batches, found in (
        (None, True, None),
        (None, False, 0.75),
        (0.25, False, 0.25),
    ):
        line = replace(outcome_of(experience, NO_REWARD, {}), user_reward_mean=mean)
        part = cast("list[Link]", [SimpleNamespace(ledger=lambda line=line: [line])])
        means = LedgerMeans(part, lambda asked: [0.75] * len(asked), same_batches=same_batches)
        assert means([experience]) == [found]
        assert means.looked_up == int(found == 0.75)
