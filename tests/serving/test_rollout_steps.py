"""A plan of several steps on the real broker: from copies nobody sees to everybody, or back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.clock import SystemClock
from contracts.events import BASE_VERSION, Rollout
from contracts.ids import NewId
from contracts.settings import Gate, Kafka
from contracts.settings.rollout import Rollout as Rules
from contracts.settings.rollout import Step
from contracts.topics import REWARDS
from serving.assignment import assign
from serving.rollout_transition import entered
from tests.serving.rollout_stage import HALF, RULES, Stage
from tests.serving.rollout_states import canary_state
from tests.stream_events import NOON, safety
from tests.until import until

SHADOW = Step(weight=0.0, shadow_share=0.5, min_canary_requests=10, min_canary_users=5)
FIFTH = Step(weight=0.2, min_canary_requests=5, min_canary_users=5)
PLAN = replace(RULES, steps=(SHADOW, FIFTH, HALF))

weights = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True).map(sorted)


@pytest.fixture
def stage(kafka: Kafka, tmp_path: Path, new_id: NewId) -> Stage:
    return Stage(kafka, tmp_path, new_id, PLAN)


def at_weight(stage: Stage, weight: float) -> Rollout:
    def found() -> Rollout | None:
        last = stage.states()[-1]
        return last if (last.phase, last.weight) == ("canary", weight) else None

    return until(f"weight {weight}", found)


@given(user=st.text(min_size=1), rising=weights)
def test_over_all_steps_of_a_rollout_a_user_moves_once_at_most_and_never_back(
    user: str, rising: list[float]
) -> None:
    rules = Rules(steps=(SHADOW, *(Step(weight=weight) for weight in rising)))
    state = canary_state(0.5)
    arms = []
    for number in range(len(rules.steps)):
        state = entered(state, number, rules, NOON)
        arms.append(assign(state, "assistant", user).arm)
    assert arms[0] == "stable"
    assert arms == sorted(arms, reverse=True)  # "stable" ... then "canary" ...


def test_a_version_goes_from_copies_to_a_few_users_to_half_of_them_to_all(stage: Stage) -> None:
    with stage.controller() as status:
        version = stage.released()
        shadow = stage.state("shadow", version)
        assert (shadow.weight, shadow.shadow_share, shadow.step) == (0.0, 0.5, 0)
        stage.serve(shadow, range(10))
        stage.copy(shadow, range(10))
        fifth = at_weight(stage, 0.2)
        stage.serve(fifth, range(100, 160))
        half = at_weight(stage, 0.5)
        assert (half.step, half.evidence.requests["shadow"]) == (2, 10)
        stage.serve(half, range(200, 280))
        promoted = stage.state("promoted", version)
        until("figures", lambda: status.counts()["promoted"] == 1)
        assert status.counts()["releases"] == 1
    assert {state.salt for state in (shadow, fifth, half)} == {promoted.salt}
    assert {state.plan for state in (shadow, fifth, half)} == {promoted.plan}
    assert [step.weight for step in promoted.evidence.rewards] == [0.2, 0.5]
    records = stage.audits()
    assert [record.action for record in records] == [
        "rollout.started",
        "rollout.advanced",
        "rollout.advanced",
        "rollout.promoted",
    ]
    assert records[0].detail["plan"] == promoted.plan
    assert records[0].time < shadow.time


def test_what_is_unsafe_on_copies_never_meets_a_user(stage: Stage) -> None:
    with stage.controller():
        version = stage.released()
        shadow = stage.state("shadow", version)
        stage.serve(shadow, range(60))
        stage.copy(shadow, range(60, 120), violation=True)
        back = stage.state("rolled-back", version)
    assert back.reason.startswith("safety: e-value")
    assert "canary" not in back.evidence.requests
    assert {state.weight for state in stage.states()} == {0.0}


@pytest.mark.parametrize(
    ("reason", "guardrail"),
    [
        ("canary: 9f2c1e7ab0d4: no answer in 30 s", "error"),
        ("canary: 9f2c1e7ab0d4: the engine answered with status 500", "tripwire"),
    ],
)
def test_a_candidate_that_gives_no_answer_goes_back_although_users_were_answered(
    stage: Stage, reason: str, guardrail: str
) -> None:
    stage.settings = replace(stage.settings, rollout=RULES)
    with stage.controller():
        version = stage.released()
        canary = stage.state("canary", version)
        for number in range(60):
            user = f"user-{number}"
            given, now = assign(canary, "desk", user), SystemClock().now()
            if given.arm == "canary":
                given = replace(given, arm="stable", policy_version=BASE_VERSION)
                event = safety(f"d-{number}", user, given, error=reason, decided_at=now)
            else:
                event = safety(f"d-{number}", user, given, decided_at=now)
            stage.send(REWARDS, event)
        assert stage.state("rolled-back", version).reason.startswith(f"{guardrail}: ")


def test_a_gateway_that_assigns_by_its_own_pauses_the_rollout(stage: Stage) -> None:
    stage.settings = replace(stage.settings, rollout=RULES)
    with stage.controller():
        canary = stage.state("canary", stage.released())
        users = [f"user-{n}" for n in range(300)]
        given = next(a for a in (assign(canary, "desk", u) for u in users) if a.arm == "stable")
        for user in users[:40]:
            stage.send(REWARDS, safety(f"d-{user}", user, given, decided_at=SystemClock().now()))
        paused = until("a pause", lambda: next((s for s in stage.states() if s.paused), None))
    assert paused.paused.startswith("sample ratio: e-value")
    assert (paused.phase, paused.weight) == ("canary", 0.5)
    assert "rollout.paused" in [record.action for record in stage.audits()]


def test_after_a_rollback_the_next_release_waits(stage: Stage) -> None:
    stage.settings = replace(stage.settings, rollout=replace(RULES, cooldown_seconds=2.0))
    with stage.controller():
        bad = stage.released()
        stage.serve(stage.state("canary", bad), range(60), bad_canary=True)
        back = stage.state("rolled-back", bad)
        after = stage.state("canary", stage.released())
    assert back.cooldown_until is not None
    assert after.started_at is not None
    assert after.started_at >= back.cooldown_until


def test_what_the_gate_refuses_meets_neither_users_nor_copies(stage: Stage) -> None:
    stage.settings = replace(stage.settings, gate=Gate(mode="enforce"))
    with stage.controller():
        version = stage.released()
        refused = stage.state("refused", version)
    assert refused.reason.startswith("gate: ")
    assert [r.action for r in stage.audits()] == ["gate.refused", "rollout.refused"]
    assert {state.phase for state in stage.states()} == {"idle", "refused"}
