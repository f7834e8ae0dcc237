"""A broker that does not give the log is waited for, and not for ever."""

from __future__ import annotations

from threading import Event

import pytest
from kafka.errors import TopicAuthorizationFailedError

from contracts.clock import ManualClock
from contracts.errors import DeadlineError
from contracts.settings import Kafka
from learner.backoff import PATIENCE_SECONDS, Backoff

REFUSED = TopicAuthorizationFailedError("samples")


@pytest.fixture
def backoff(clock: ManualClock) -> Backoff:
    """Pauses that end at once."""
    stop = Event()
    stop.set()
    return Backoff(Kafka(bootstrap="127.0.0.1:9"), clock, stop)


def test_tries_that_come_to_nothing_end_with_what_was_said_last(
    backoff: Backoff, clock: ManualClock
) -> None:
    backoff.pause(REFUSED)
    clock.advance(PATIENCE_SECONDS)
    backoff.pause(REFUSED)
    clock.advance(1.0)

    with pytest.raises(DeadlineError, match=r"127.0.0.1:9: nothing of samples .* 300 s") as ended:
        backoff.pause(REFUSED)
    assert "TopicAuthorizationFailedError" in str(ended.value)


def test_what_comes_again_after_each_connection_is_no_progress(
    backoff: Backoff, clock: ManualClock
) -> None:
    """Behind it lies what cannot be read."""
    backoff.read(999)
    backoff.pause(REFUSED)
    clock.advance(PATIENCE_SECONDS + 1.0)
    backoff.read(999)
    with pytest.raises(DeadlineError):
        backoff.pause(REFUSED)


def test_what_was_read_between_begins_the_wait_anew(backoff: Backoff, clock: ManualClock) -> None:
    backoff.pause(REFUSED)
    clock.advance(PATIENCE_SECONDS)
    backoff.read(1000)
    clock.advance(PATIENCE_SECONDS)
    backoff.pause(REFUSED)
    clock.advance(PATIENCE_SECONDS)
    backoff.end()
    clock.advance(PATIENCE_SECONDS)
    backoff.pause(REFUSED)
