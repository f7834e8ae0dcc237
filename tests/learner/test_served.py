"""What is in service is told by the newest answers; a few, or what a clock says, move nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from msgspec.structs import replace

from contracts.events import Sample
from contracts.settings import Settings
from learner.anchor import in_service
from learner.experience import experience_of
from learner.progress import SERVED_LEAST
from tests.learner.learning import Learning

MakeSample = Callable[..., Sample]
FAR = 40
"""Releases between the version in service and the canary beside it; the bound is 12."""


@pytest.fixture
def learning(settings: Settings, make_sample: MakeSample) -> Learning:
    """Return a learner that has seen what version 5 of the policy answered."""
    found = Learning(settings, make_sample)
    for _ in range(SERVED_LEAST // 8):
        found.take(*[5] * 8)
    return found


def test_a_canary_that_goes_back_does_not_make_stale_what_serves(learning: Learning) -> None:
    assert learning.take(*[5] * 7, FAR) == ["used"] * 8
    assert learning.take(*[5] * 8) == ["used"] * 8
    assert learning.progress.stats.replayed > 0


def test_what_was_served_long_before_what_serves_now_is_stale(learning: Learning) -> None:
    for _ in range(SERVED_LEAST // 8):
        learning.take(*[FAR] * 8)
    assert learning.take(*[5] * 4, *[FAR] * 4) == ["stale"] * 4 + ["used"] * 4


def test_after_a_rollback_what_serves_again_is_learned_from_again(learning: Learning) -> None:
    for _ in range(SERVED_LEAST // 8):
        learning.take(*[FAR] * 8)
    taken = [learning.take(*[5] * 8) for _ in range(SERVED_LEAST // 8)]
    assert taken[0] == ["stale"] * 8
    assert taken[-1] == ["used"] * 8


def test_of_a_batch_with_one_rating_the_silent_answers_say_what_serves(
    learning: Learning,
) -> None:
    learning.take(FAR, silent=(5,) * 8)
    assert in_service(learning.progress.served) == 5
    assert len(learning.progress.served) == SERVED_LEAST


def test_what_a_clock_says_of_the_future_counts_as_of_when_the_sample_was_made(
    make_sample: MakeSample,
) -> None:
    sample = make_sample(1)
    later = sample.time + timedelta(days=9_000)
    found = experience_of(replace(sample, decided_at=later, feedback_time=later))
    assert (found.decided_at, found.feedback_time) == (sample.time, sample.time)
    ahead = experience_of(replace(sample, time=later, feedback_time=later), appended=sample.time)
    assert ahead.feedback_time == sample.time
    usual = experience_of(sample)
    assert (usual.decided_at, usual.feedback_time) == (sample.decided_at, sample.feedback_time)
