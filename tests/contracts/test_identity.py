"""Ids, clocks and feedback tokens."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.clock import ManualClock, SystemClock
from contracts.ids import derived_id, uuid7_ids
from contracts.tokens import feedback_token, token_is_valid

SECRET = b"a secret of the tests"


def test_uuid7_has_version_variant_and_its_moment(clock: ManualClock) -> None:
    new_id = uuid7_ids(clock)
    clock.advance(1234.567)
    made = uuid.UUID(new_id())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    moment = datetime.fromtimestamp((made.int >> 80) / 1000, UTC)  # RFC 9562, section 5.7
    assert abs(moment - clock.now()) < timedelta(milliseconds=2)


def test_uuid7_ids_sort_by_time_across_milliseconds(clock: ManualClock) -> None:
    new_id = uuid7_ids(clock)
    made = []
    for _ in range(200):
        made.append(new_id())
        clock.advance(0.002)
    assert made == sorted(made)


def test_uuid7_ids_within_one_moment_differ(clock: ManualClock) -> None:
    new_id = uuid7_ids(clock)
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_seeded_ids_are_reproducible() -> None:
    first, second = (uuid7_ids(ManualClock(), random.Random(3)) for _ in range(2))
    assert [first() for _ in range(5)] == [second() for _ in range(5)]


def test_derived_id_is_the_same_in_every_run() -> None:
    assert derived_id("d1", "reward", "0") == "b546114a-b934-53d1-b9f9-71fff45ed52c"
    assert uuid.UUID(derived_id("d1", "reward", "0")).version == 5


@given(st.lists(st.text("abc"), max_size=4), st.lists(st.text("abc"), max_size=4))
def test_derived_ids_differ_when_their_parts_differ(one: list[str], other: list[str]) -> None:
    assert (derived_id(*one) == derived_id(*other)) is ("\x1f".join(one) == "\x1f".join(other))


def test_manual_clock_moves_only_forward(clock: ManualClock) -> None:
    start = clock.now()
    assert start.tzinfo is UTC
    clock.advance(1.5)
    assert clock.now() - start == timedelta(seconds=1.5)
    assert clock.monotonic() == 1.5
    with pytest.raises(ValueError, match="back in time"):
        clock.advance(-1)


def test_system_clock_is_utc_and_monotonic() -> None:
    clock = SystemClock()
    assert clock.now().utcoffset() == timedelta(0)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
    first = clock.monotonic()
    assert clock.monotonic() >= first


def test_token_holds_for_its_decision_session_and_user_alone() -> None:
    token = feedback_token(SECRET, "d1", "s1", "u1")
    assert token_is_valid(SECRET, token, "d1", "s1", "u1")
    assert not token_is_valid(SECRET, token, "d2", "s1", "u1")
    assert not token_is_valid(SECRET, token, "d1", "s2", "u1")
    assert not token_is_valid(SECRET, token, "d1", "s1", "u2")
    assert not token_is_valid(b"another", token, "d1", "s1", "u1")


def test_token_cannot_be_moved_by_shifting_text_between_its_parts() -> None:
    assert feedback_token(SECRET, "ab", "c", "u") != feedback_token(SECRET, "a", "bc", "u")


@pytest.mark.parametrize("token", ["", "0" * 64, "é", "\ud800"])
def test_forged_token_is_refused(token: str) -> None:
    assert not token_is_valid(SECRET, token, "d1", "s1", "u1")
    assert not token_is_valid(SECRET, token, "\ud800", "s1", "u1")
