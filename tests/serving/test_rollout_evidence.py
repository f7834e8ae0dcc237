"""Evidence: each decision once, each user's first violation once, the same bytes in any order."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.codec import to_json
from contracts.events import Arm, Event, Evidence, Reward, Safety
from serving.assignment import assign
from serving.eprocess import add_event, e_value
from serving.rollout_evidence import EMPTY, MAX_OFFENDERS, EvidenceCounter
from tests import stream_events as make
from tests.serving.rollout_states import canary_state

STATE = msgspec.structs.replace(canary_state(0.1), evidence=EMPTY)


def user_in(arm: Arm, name: str) -> str:
    """A user of that name whom the hash puts into the arm."""
    return next(
        user for n in itertools.count() if assign(STATE, "p", user := f"{name}/{n}").arm == arm
    )


def safety(
    decision: str, arm: Arm = "canary", *, user: str | None = None, violation: bool = False
) -> Safety:
    user = user_in(arm, user or decision)
    return make.safety(decision, user, assign(STATE, "p", user), violation=violation)


def reward(decision: str, value: float | None, arm: Arm = "canary", revision: int = 0) -> Reward:
    user = user_in(arm, decision)
    return make.reward(decision, value, user, assign(STATE, "p", user), revision)


def count(events: list[Event]) -> Evidence:
    counter = EvidenceCounter(STATE)
    for event in events:
        counter.count(event)
    return counter.evidence


def test_requests_users_and_violations_are_counted_per_arm() -> None:
    found = count(
        [
            safety("1", "canary", user="a"),
            safety("2", "canary", user="a", violation=True),
            safety("3", "stable", user="b"),
            safety("4", "stable", user="c", violation=True),
        ]
    )
    assert found.requests == {"canary": 2, "stable": 2}
    assert found.users == {"canary": 1, "stable": 2}
    assert found.violations == {"canary": 1, "stable": 1}
    logs = add_event(add_event((), canary=True, weight=0.1), canary=False, weight=0.1)
    assert (found.log_wealth, found.e_value) == (logs, e_value(logs))


def test_a_decision_that_arrives_twice_counts_once() -> None:
    events: list[Event] = [safety("1", violation=True), reward("1", 0.5)]
    assert count(events * 3) == count(events)


def test_a_user_who_violates_again_and_again_is_one_event_for_the_test() -> None:
    once = count([safety("0", user="a", violation=True)])
    often = count([safety(str(n), user="a", violation=True) for n in range(20)])
    assert often.violations["canary"] == 20
    assert (often.log_wealth, often.offenders) == (once.log_wealth, once.offenders)


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout_id": "another"},
        {"rollout_id": None},
        {"arm": "stable", "policy_version": "old", "probability": 0.9},
        {"policy_version": "base"},
    ],
    ids=["another rollout", "no rollout", "answered by stable instead", "answered by base instead"],
)
def test_only_what_the_users_own_arm_of_this_rollout_answered_counts(
    changes: dict[str, object],
) -> None:
    event = safety("1", "canary", violation=True)
    given = msgspec.structs.replace(event.assignment, **changes)
    assert count([msgspec.structs.replace(event, assignment=given)]) == EMPTY


def test_an_event_counts_under_the_weight_of_its_own_time() -> None:
    smaller = msgspec.structs.replace(STATE, weight=0.05)
    user = next(u for n in range(999) if assign(smaller, "p", u := f"u{n}").arm == "canary")
    event = msgspec.structs.replace(
        safety("1", violation=True), user_id=user, assignment=assign(smaller, "p", user)
    )
    assert count([event]).log_wealth == add_event((), canary=True, weight=0.05)


def test_only_the_reward_of_the_closing_window_counts() -> None:
    assert count([reward("1", None)]) == EMPTY
    assert count([reward("1", 0.5, revision=1)]) == EMPTY
    late = [reward("1", None), reward("1", 1.0, revision=1)]
    assert count([*late]) == EMPTY
    found = count([reward("2", 0.5), reward("2", -1.0, revision=1)])
    assert (found.reward_count["canary"], found.reward_sum["canary"]) == (1, 0.5)


def test_users_are_kept_as_keys_not_as_names() -> None:
    found = count([safety("1", user="alice@example.org", violation=True)])
    assert len(found.offenders) == 1
    assert b"alice" not in to_json(found)


arms = st.sampled_from(["canary", "stable"])
numbers = st.integers(0, 40)
events = st.lists(
    st.one_of(
        st.builds(
            lambda n, arm, bad: safety(f"{n}{arm}", arm, user=f"{n % 5}{arm}", violation=bad),
            numbers,
            arms,
            st.booleans(),
        ),
        st.builds(lambda n, arm: reward(f"{n}{arm}", n * 37 % 200 / 100 - 1, arm), numbers, arms),
    ),
    max_size=60,
    unique_by=lambda event: event.id,
)


@settings(max_examples=50, deadline=None)
@given(events, st.integers())
def test_the_order_of_events_does_not_change_a_byte(history: list[Event], seed: int) -> None:
    shuffled = list(history)
    random.Random(seed).shuffle(shuffled)
    assert to_json(count(history)) == to_json(count(shuffled))


@settings(max_examples=50, deadline=None)
@given(events, st.integers(0, 60))
def test_going_on_from_published_evidence_gives_what_never_stopping_gives(
    history: list[Event], cut: int
) -> None:
    before, again = history[:cut], history[max(cut - 5, 0) :]  # some events come twice
    published = msgspec.json.decode(to_json(count(before)), type=Evidence)
    counter = EvidenceCounter(msgspec.structs.replace(STATE, evidence=published))
    for event in before:
        counter.recall(event)
    for event in again:
        counter.count(event)
    assert to_json(counter.evidence) == to_json(count(history))


def test_a_full_counter_stops_counting() -> None:
    counter = EvidenceCounter(STATE, max_decisions=3)
    changed = [counter.count(safety(str(n))) for n in range(5)]
    assert changed == [True, True, True, False, False]
    assert counter.full


def test_a_full_table_of_offenders_fits_into_one_record() -> None:
    offenders = tuple(f"{n:016x}" for n in range(MAX_OFFENDERS))
    evidence = msgspec.structs.replace(EMPTY, offenders=offenders)
    assert EvidenceCounter(msgspec.structs.replace(STATE, evidence=evidence)).full
    assert len(to_json(evidence)) < 100_000
