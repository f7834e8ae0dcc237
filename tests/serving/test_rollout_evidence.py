"""Evidence: each decision once, each user's first violation once, the same bytes in any order."""

from __future__ import annotations

import itertools
import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.codec import to_json
from contracts.events import (
    Arm,
    Component,
    Event,
    Evidence,
    GuardrailEvidence,
    Reward,
    Safety,
)
from contracts.findings import Finding
from contracts.judges import is_judge
from contracts.settings import Settings
from contracts.settings.rollout import Rollout
from serving import rollout_evidence, sample_ratio
from serving.assignment import assign, assign_shadow, shadow_weight
from serving.eprocess import add_event, e_value
from serving.rollout_evidence import EMPTY, CountingRules, EvidenceCounter
from tests import stream_events as make
from tests.serving.rollout_states import canary_state

STATE = replace(canary_state(0.1), evidence=EMPTY)
SHADOW = replace(STATE, phase="shadow", weight=0.0, shadow_share=0.25)
RULES = CountingRules(
    window_seconds=60.0,
    judge_share=0.999,
    first_token_limit_seconds=2.0,
    answer_limit_seconds=20.0,
    max_users=1000,
)


LATER = make.NOON + timedelta(days=1)
"""The controller's clock while it counts."""


def user_in(arm: Arm, name: str) -> str:
    """A user of that name whom the hash puts into the arm."""
    return next(
        user for n in itertools.count() if assign(STATE, "p", user := f"{name}/{n}").arm == arm
    )


def safety(
    decision: str, arm: Arm = "canary", *, user: str | None = None, **changes: Any
) -> Safety:
    user = user_in(arm, user or decision)
    return make.safety(decision, user, assign(STATE, "p", user), **changes)


def reward(decision: str, value: float | None, arm: Arm = "canary", revision: int = 0) -> Reward:
    user = user_in(arm, decision)
    return make.reward(decision, value, user, assign(STATE, "p", user), revision)


def count(events: list[Event], rules: CountingRules = RULES) -> Evidence:
    counter = EvidenceCounter(STATE, rules)
    for event in events:
        counter.count(event, LATER)
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
    assert (found.step_requests, found.step_users) == (2, 1)
    logs = add_event(add_event((), canary=True, weight=0.1), canary=False, weight=0.1)
    assert found.guardrails["safety"] == GuardrailEvidence(
        events={"canary": 1, "stable": 1}, log_wealth=logs, e_value=e_value(logs)
    )


def test_a_decision_that_arrives_twice_counts_once() -> None:
    events: list[Event] = [safety("1", violation=True), reward("1", 0.5)]
    assert count(events * 3) == count(events)


def test_a_user_who_violates_again_and_again_is_one_event_for_the_test() -> None:
    once = count([safety("0", user="a", violation=True)])
    often = count([safety(str(n), user="a", violation=True) for n in range(20)])
    assert often.guardrails["safety"].events == {"canary": 20}
    assert often.guardrails["safety"].log_wealth == once.guardrails["safety"].log_wealth


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
    given = replace(event.assignment, **changes)
    found = count([replace(event, assignment=given)])
    assert (found.requests, found.guardrails) == ({}, EMPTY.guardrails)


def test_an_event_counts_under_the_weight_of_its_own_time() -> None:
    smaller = replace(STATE, weight=0.05)
    user = next(u for n in range(999) if assign(smaller, "p", u := f"u{n}").arm == "canary")
    event = replace(
        safety("1", violation=True), user_id=user, assignment=assign(smaller, "p", user)
    )
    found = count([event])
    assert found.guardrails["safety"].log_wealth == add_event((), canary=True, weight=0.05)
    assert found.step_requests == 0  # it was asked in another step


def test_a_version_that_gives_no_answer_is_charged_although_another_answered() -> None:
    user = user_in("canary", "a")
    instead = replace(assign(STATE, "p", user), arm="stable", policy_version="old", probability=0.9)
    errors = ["canary: 9f2c1e7ab0d4: no answer in 2 s", "stable: 1b7d93ac55e0: no answer in 2 s"]
    one = make.safety("1", user, instead, error="; ".join(errors))
    two = safety("2", "stable", error=errors[1])
    ours = replace(assign(STATE, "p", user_in("stable", "c")), policy_version="base")
    three = make.safety("3", user_in("stable", "c"), ours, error="the client went away")
    found = count([one, two, three])
    assert found.guardrails["error"].events == {"canary": 1, "stable": 1}
    assert found.requests == {"stable": 1}


def test_an_answer_that_begins_late_is_slow_and_one_without_a_time_is_not() -> None:
    waits = {"1": 2.1, "2": 2.0, "3": None}
    found = count([safety(name, first_token_seconds=wait) for name, wait in waits.items()])
    assert found.guardrails["slow"].events == {"canary": 1}


def test_a_plain_answer_is_slow_as_a_whole_and_a_copy_that_nobody_waits_for_never_is() -> None:
    found = count([safety("1", answer_seconds=20.1), safety("2", answer_seconds=19.9)])
    assert found.guardrails["slow"].events == {"canary": 1}
    counter = EvidenceCounter(SHADOW, RULES)
    copy = assign_shadow(SHADOW, "p")
    counter.count(make.safety("3", "u", copy, answer_seconds=99.0), LATER)
    assert counter.evidence.requests == {"shadow": 1}
    assert counter.evidence.guardrails["slow"].events == {}


LEAK = Finding(category="secret", rule="key", where="answer")
QUOTED = Finding(category="secret", rule="key", where="question")
MILD = Finding(category="disallowed-topic", rule="legal", where="answer")


@pytest.mark.parametrize(
    ("changes", "severe"),
    [
        ({"violation": True, "findings": (LEAK,)}, {"canary": 1}),
        ({"violation": False, "findings": (LEAK,)}, {}),
        ({"violation": True, "findings": (QUOTED, MILD)}, {}),
        ({"error": "canary: 9f2c: the engine answered with status 500"}, {"canary": 1}),
        ({"error": "canary: 9f2c: logits are NaN"}, {"canary": 1}),
        ({"error": "canary: 9f2c: the engine answered with status 503"}, {}),
        ({"error": "canary: 9f2c: no answer in 5 s"}, {}),
    ],
)
def test_a_leak_and_an_engine_that_fails_by_itself_are_severe(
    changes: dict[str, Any], severe: dict[str, int]
) -> None:
    assert count([safety("1", **changes)]).severe == severe


def test_a_users_severe_findings_are_one() -> None:
    found = [safety(str(n), user="a", violation=True, findings=(LEAK,)) for n in range(3)]
    assert count([*found]).severe == {"canary": 1}
    other = safety("4", user="b", violation=True, findings=(LEAK,))
    assert count([*found, other]).severe == {"canary": 2}


def test_copies_count_for_the_candidate_under_their_share_of_all_answers() -> None:
    served, copied = assign(SHADOW, "p", "a"), assign_shadow(SHADOW, "p")
    weight = shadow_weight(0.25)
    counter = EvidenceCounter(SHADOW, RULES)
    counter.count(make.safety("1", "a", served), LATER)
    counter.count(make.safety("2", "a", copied, violation=True), LATER)
    counter.count(make.reward("1", None, "a", served), LATER)
    found = counter.evidence
    assert found.requests == {"shadow": 1, "stable": 1}
    assert (found.step_requests, found.step_users) == (1, 1)
    logs = add_event((), canary=True, weight=weight)
    assert found.guardrails["safety"].log_wealth == logs
    assert (found.guardrails["missing"].events, found.sample_ratio.events) == ({}, {})


def test_the_next_step_counts_its_own_requests_and_carries_the_evidence_on() -> None:
    counter = EvidenceCounter(STATE, RULES)
    counter.count(safety("1", user="a", violation=True), LATER)
    first = counter.evidence
    state = replace(STATE, weight=0.5, evidence=replace(first, step_requests=0, step_users=0))
    counter.enter(state)
    user = user_in("canary", "a")
    counter.count(make.safety("2", user, assign(state, "p", user), violation=True), LATER)
    counter.count(safety("3", user="b"), LATER)
    found = counter.evidence
    assert (found.step_requests, found.step_users) == (1, 1)
    assert found.guardrails["safety"].log_wealth == first.guardrails["safety"].log_wealth
    assert found.requests == {"canary": 3}


def test_users_are_tested_by_the_arm_they_were_put_in_once_each() -> None:
    a, b = user_in("canary", "a"), user_in("canary", "b")
    instead = replace(assign(STATE, "p", b), arm="stable", policy_version="old", probability=0.9)
    wrong = assign(STATE, "p", user_in("stable", "c"))
    found = count(
        [
            safety("1", user="a"),
            safety("2", user="a"),
            make.safety("3", b, instead, error="canary: 9f2c: no answer in 2 s"),
            make.safety("4", user_in("canary", "d"), wrong),  # a gateway that assigns by its own
        ]
    )
    assert a != b
    logs = sample_ratio.add_users((), canary=2, stable=1, weight=0.1)
    assert found.sample_ratio.events == {"canary": 2, "stable": 1}
    assert found.sample_ratio.e_value == pytest.approx(e_value(logs))


def test_the_watermark_is_that_of_the_windows_not_of_the_clock() -> None:
    later = make.NOON + timedelta(seconds=600)
    assert count([safety("1", decided_at=later)]).watermark == later - timedelta(seconds=60)
    closed = replace(reward("2", 0.5), decided_at=later)
    assert count([safety("1", decided_at=later), closed]).watermark == later


def test_a_gateways_clock_that_runs_ahead_moves_the_watermark_no_further_than_our_own() -> None:
    ahead, now = make.NOON + timedelta(seconds=601), make.NOON
    counter = EvidenceCounter(STATE, RULES)
    counter.count(safety("1", decided_at=ahead), now)
    assert counter.evidence.watermark == now - timedelta(seconds=60)
    counter.count(replace(reward("2", 0.5), decided_at=ahead), now)
    assert counter.evidence.watermark == now


def test_only_judges_vouch_for_a_version_by_their_feedback() -> None:
    half = replace(RULES, judge_share=0.5)
    rewards = [reward(str(n), 0.5) for n in range(40)]
    judges = {event.user_id for event in rewards if is_judge("p", event.user_id, 0.5)}
    found = count([*rewards], half)
    assert 0 < len(judges) < 40
    assert found.rewards[0].count == {"canary": len(judges)}
    silent = count([replace(event, status="censored", value=None) for event in rewards], half)
    assert silent.guardrails["missing"].events == {"canary": len(judges)}
    assert found.guardrails["missing"].events == {}


def test_of_a_users_windows_the_first_tells_whether_feedback_is_missing() -> None:
    user = user_in("canary", "a")
    given = assign(STATE, "p", user)
    ours = Component(name="safety", value=-1.0, weight=1.0, rule="violation", event_ids=("x",))
    silent = make.reward("1", -1.0, user, given, components=(ours,))
    heard = Component(name="rating", value=1.0, weight=1.0, rule="newest", event_ids=("y",))
    spoke = make.reward("2", 1.0, user, given, components=(heard,))
    assert count([silent, spoke]).guardrails["missing"].events == {"canary": 1}
    assert count([spoke, silent]).guardrails["missing"].events == {}


def test_only_the_reward_of_the_closing_window_counts() -> None:
    assert count([reward("1", None)]).rewards == ()
    assert count([reward("1", 0.5, revision=1)]) == EMPTY
    late = [reward("1", None), reward("1", 1.0, revision=1)]
    assert count([*late]).rewards == ()
    (found,) = count([reward("2", 0.5), reward("2", -1.0, revision=1)]).rewards
    assert (found.weight, found.count, found.total) == (0.1, {"canary": 1}, {"canary": 0.5})


def test_a_judge_who_rates_again_and_again_counts_once_in_a_step() -> None:
    user = user_in("canary", "a")
    given, later = assign(STATE, "p", user), assign(replace(STATE, weight=0.5), "p", user)
    often = [make.reward(str(n), 0.5 - n / 20, user, given) for n in range(20)]
    found = count([*often, reward("b", 0.25), make.reward("next", 1.0, user, later)])
    assert [step.count for step in found.rewards] == [{"canary": 2}, {"canary": 1}]
    assert [step.total for step in found.rewards] == [{"canary": 0.75}, {"canary": 1.0}]


def test_rewards_of_different_weights_are_kept_apart() -> None:
    user = user_in("canary", "a")
    later = replace(STATE, weight=0.5)
    found = count([reward("1", 0.5), make.reward("2", 1.0, user, assign(later, "p", user))])
    assert [(step.weight, step.total) for step in found.rewards] == [
        (0.1, {"canary": 0.5}),
        (0.5, {"canary": 1.0}),
    ]


def test_no_user_is_named_in_the_evidence() -> None:
    found = count([safety("1", user="alice@example.org", violation=True)])
    assert b"alice" not in to_json(found)


def _value(number: int) -> float | None:
    return number * 37 % 200 / 100 - 1 if number % 3 else None


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
        st.builds(lambda n, arm: reward(f"{n}{arm}", _value(n), arm), numbers, arms),
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
    counter = EvidenceCounter(replace(STATE, evidence=published), RULES)
    for event in before:
        counter.recall(event)
    for event in again:
        counter.count(event, LATER)
    assert to_json(counter.evidence) == to_json(count(history))


def test_how_many_users_are_remembered_is_a_setting() -> None:
    given = Settings(rollout=Rollout(max_users=7))
    assert CountingRules.of(given).max_users == 7


def test_requests_alone_do_not_fill_a_counter_and_one_that_comes_again_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollout_evidence, "RECENT", 5)
    counter = EvidenceCounter(STATE, replace(RULES, max_users=2))
    for n in range(100):
        counter.count(safety(str(n), user="a"), LATER)
        counter.count(safety(str(max(n - 3, 0)), user="a"), LATER)
    assert counter.evidence.requests == {"canary": 100}
    assert not counter.full


def test_a_full_counter_stops_counting() -> None:
    counter = EvidenceCounter(STATE, replace(RULES, max_users=3))
    changed = [counter.count(safety(str(n)), LATER) for n in range(5)]
    assert changed == [True, True, True, False, False]
    assert counter.full
