"""When a breaker opens, lets one request through to see, and closes."""

from __future__ import annotations

from contracts.clock import ManualClock
from contracts.settings import Gateway
from serving.breaker import MAX_VERSIONS, Breakers

RULES = Gateway(breaker_failures=3, breaker_window=10, breaker_share=0.5, breaker_seconds=5.0)


def test_it_opens_after_failures_in_a_row_and_not_before(clock: ManualClock) -> None:
    breakers = Breakers(RULES, clock)
    for _ in range(2):
        breakers.failed("v")
    assert breakers.admits("v")
    breakers.succeeded("v")
    for _ in range(2):
        breakers.failed("v")
    assert breakers.admits("v")
    breakers.failed("v")
    assert not breakers.admits("v")
    assert breakers.admits("another")


def test_it_opens_at_a_share_of_failures_in_a_full_window(clock: ManualClock) -> None:
    breakers = Breakers(RULES, clock)
    for _ in range(4):
        breakers.failed("v")
        breakers.succeeded("v")
    breakers.failed("v")
    assert breakers.admits("v")  # nine outcomes are no window yet
    breakers.succeeded("v")
    breakers.failed("v")
    assert not breakers.admits("v")


def test_after_the_delay_one_request_tries_and_its_answer_closes_it(clock: ManualClock) -> None:
    told: list[tuple[str, bool]] = []
    breakers = Breakers(RULES, clock, lambda version, opened: told.append((version, opened)))
    for _ in range(3):
        breakers.failed("v")
    clock.advance(4.9)
    assert not breakers.admits("v")
    clock.advance(0.2)
    assert [breakers.admits("v") for _ in range(3)] == [True, False, False]
    breakers.failed("v")
    clock.advance(4.9)
    assert not breakers.admits("v")
    clock.advance(0.2)
    assert breakers.admits("v")
    assert breakers.open_versions() == ("v",)
    breakers.succeeded("v")
    assert breakers.open_versions() == ()
    assert [breakers.admits("v") for _ in range(3)] == [True] * 3
    assert told == [("v", True), ("v", False)]


def test_a_trial_that_never_reports_does_not_shut_the_version_out(clock: ManualClock) -> None:
    breakers = Breakers(RULES, clock)
    for _ in range(3):
        breakers.failed("v")
    for _ in range(3):
        clock.advance(5.1)
        assert breakers.admits("v")


def test_the_versions_remembered_are_bounded(clock: ManualClock) -> None:
    breakers = Breakers(RULES, clock)
    for number in range(MAX_VERSIONS + 10):
        for _ in range(3):
            breakers.failed(f"v{number}")
    assert len(breakers.open_versions()) == MAX_VERSIONS
