"""The verdict: harm first, then sufficiency, then time; silence never promotes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from contracts.events import Arm, Candidate, Evidence, GuardrailEvidence, Rollout, StepRewards
from contracts.settings import Policy, Settings, Streams
from contracts.settings.rollout import Guardrails, Step
from contracts.settings.rollout import Rollout as Rules
from serving.eprocess import add_event, e_value
from serving.rollout_evidence import EMPTY
from serving.rollout_plan import Identity, plan_hash
from serving.rollout_transition import entered, resumed, rolled_back
from serving.rollout_verdict import Verdict, decide, found_harm, missing, reward_difference
from tests.serving.rollout_states import canary_state
from tests.stream_events import NOON

SHADOW = Step(weight=0.0, shadow_share=0.5, min_canary_requests=200, max_wait_seconds=300)
SMALL = Step(weight=0.05, min_canary_requests=300, min_canary_users=50, max_wait_seconds=600)
LAST = Step(weight=0.5, min_canary_requests=300, min_canary_users=50, max_wait_seconds=600)
RULES = Rules(steps=(SHADOW, SMALL, LAST), min_rewards=50, reward_margin=0.2)
ENOUGH = 400


def evidence(canary: tuple[float, int] = (0.5, 2000), **changes: Any) -> Evidence:
    """Enough of everything; the canary's rewards given as (mean, count) with a variance of 0.04."""
    mean, count = canary
    steps = StepRewards(
        weight=0.5,
        count={"canary": count, "stable": 4000},
        total={"canary": mean * count, "stable": 2000.0},
        squares={"canary": count * (mean**2 + 0.04), "stable": 4000 * 0.29},
    )
    enough = replace(
        EMPTY,
        requests={"canary": ENOUGH, "stable": 5700},
        users={"canary": ENOUGH, "stable": 950},
        step_requests=ENOUGH,
        step_users=ENOUGH,
        rewards=(steps,),
        watermark=NOON + timedelta(seconds=1),
    )
    return replace(enough, **changes)


def guarded(name: str, e_value: float) -> dict[str, GuardrailEvidence]:
    events = GuardrailEvidence(events={"canary": 9, "stable": 9}, e_value=e_value)
    return {**EMPTY.guardrails, name: events}


def at(step: int, found: Evidence, **changes: object) -> Rollout:
    state = entered(canary_state(0.5), step, RULES, NOON)
    return replace(state, **{"evidence": found, **changes})


def judge(state: Rollout, seconds: float = 10.0, *, full: bool = False) -> Verdict:
    return decide(state, RULES, NOON + timedelta(seconds=seconds), full=full)


@pytest.mark.parametrize(("step", "action"), [(0, "advance"), (1, "advance"), (2, "promote")])
def test_what_passes_a_step_goes_on_and_what_passes_the_last_is_promoted(
    step: int, action: str
) -> None:
    verdict = judge(at(step, evidence()))
    assert (verdict.action, verdict.at_once) == (action, False)
    assert "guardrails silent" in verdict.reason


@pytest.mark.parametrize(
    ("name", "threshold"), [("safety", 250), ("error", 500), ("slow", 500), ("missing", 1000)]
)
def test_each_guardrail_rolls_back_at_its_own_level_whatever_else_is_known(
    name: str, threshold: int
) -> None:
    bad = judge(at(2, evidence((1.0, 2000), guardrails=guarded(name, threshold))))
    assert (bad.action, bad.at_once) == ("roll-back", True)
    assert bad.reason.startswith(f"{name}: e-value {threshold} reached {threshold}")
    little = replace(EMPTY, guardrails=guarded(name, threshold))
    assert judge(at(0, little)).action == "roll-back"
    almost = evidence(guardrails=guarded(name, threshold * 0.999))
    assert judge(at(2, almost)).action == "continue"


@pytest.mark.parametrize("name", ["safety", "error", "slow", "missing"])
def test_while_events_lean_to_the_canary_without_proof_nothing_goes_on(name: str) -> None:
    doubtful = at(1, evidence(guardrails=guarded(name, 1.5)))
    assert missing(doubtful, RULES) == [
        f"{name} in doubt: e-value 1.5, silent up to 1, events 9 canary / 9 stable"
    ]
    fewer = at(1, evidence(guardrails=guarded(name, 0.2)))
    assert judge(fewer).action == "advance"


@pytest.mark.parametrize(
    ("steps", "severe", "harm"),
    [
        ((SMALL,), {"canary": 3}, True),
        ((SMALL,), {"canary": 2}, False),
        ((SMALL,), {"canary": 40, "stable": 1}, True),
        (
            (SHADOW, SMALL),
            {"shadow": 6},
            False,
        ),  # half of the questions copied: a third of the answers
        ((SHADOW, SMALL), {"shadow": 7}, True),
        ((SHADOW, SMALL), {"shadow": 1, "canary": 5}, False),
        ((SMALL, LAST), {"canary": 3}, False),
        ((SMALL, LAST), {"canary": 10}, True),
    ],
)
def test_more_users_with_severe_findings_than_the_share_explains_trip_the_wire(
    steps: tuple[Step, ...], severe: dict[Arm, int], harm: bool
) -> None:
    rules = replace(RULES, steps=steps)
    state = replace(canary_state(0.5), step=len(steps) - 1, evidence=evidence(severe=severe))
    assert found_harm(state, rules).startswith("tripwire: users with a severe finding ") == harm


def test_a_share_of_users_that_is_off_pauses_and_a_pause_stops_all_but_harm() -> None:
    off = evidence(sample_ratio=GuardrailEvidence(e_value=10_000.0))
    verdict = judge(at(1, off))
    assert (verdict.action, verdict.at_once) == ("pause", True)
    assert verdict.reason.startswith("sample ratio: e-value 1e+04")
    paused = at(1, off, paused="sample ratio")
    assert judge(paused, 10_000.0).action == "continue"
    harmful = replace(off, guardrails=guarded("safety", 1e9))
    assert judge(at(1, harmful, paused="sample ratio")).action == "roll-back"


@pytest.mark.parametrize(
    ("step", "change", "doubt"),
    [
        (0, {"step_requests": 199}, "199 of 200 canary requests"),
        (1, {"step_requests": 299}, "299 of 300 canary requests"),
        (1, {"step_users": 49}, "49 of 50 canary users"),
        (1, {"watermark": NOON - timedelta(seconds=1)}, "no attribution window of this step"),
        (1, {"watermark": None}, "no attribution window of this step"),
        (2, {"rewards": ()}, "0 of 50 canary rewards of judges; 0 of 50 stable rewards of judges"),
    ],
)
def test_too_little_of_anything_is_held_once_and_then_goes_back(
    step: int, change: dict[str, Any], doubt: str
) -> None:
    little, wait = evidence(**change), RULES.steps[step].max_wait_seconds
    assert "; ".join(missing(at(step, little), RULES)).startswith(doubt)
    assert judge(at(step, little), wait - 1).action == "continue"
    held = judge(at(step, little), wait)
    assert (held.action, held.at_once) == ("hold", False)
    again = at(step, little, held=True, held_at=NOON + timedelta(seconds=wait))
    assert judge(again, 2 * wait - 1).action == "continue"
    late = judge(again, 2 * wait)
    assert late.action == "roll-back"
    assert late.reason.startswith(f"inconclusive after {wait:.0f} s and as long on hold: {doubt}")


def test_a_hold_lasts_as_long_from_when_it_was_begun_however_late_that_was() -> None:
    wait = SMALL.max_wait_seconds
    late = at(1, EMPTY, held=True, held_at=NOON + timedelta(seconds=5 * wait))
    assert judge(late, 6 * wait - 1).action == "continue"
    assert judge(late, 6 * wait).action == "roll-back"
    unknown = at(1, EMPTY, held=True)  # of a writer that did not say when
    assert judge(unknown, 2 * wait - 1).action == "continue"
    assert judge(unknown, 2 * wait).action == "roll-back"


def test_a_step_that_is_entered_or_resumed_is_on_hold_no_more() -> None:
    held = at(1, EMPTY, held=True, held_at=NOON)
    after = [
        entered(held, 2, RULES, NOON),
        resumed(held, NOON, "go on"),
        rolled_back(held, RULES, NOON, ""),
    ]
    assert [(state.held, state.held_at) for state in after] == [(False, None)] * 3


def test_a_shadow_waits_for_no_reward() -> None:
    assert judge(at(0, evidence(rewards=(), watermark=None))).action == "advance"


def test_nothing_at_all_is_never_promoted() -> None:
    assert judge(at(2, EMPTY)).action == "continue"
    assert judge(at(2, Evidence(), held=True), 10_000.0).action == "roll-back"


def test_a_reward_that_is_proved_worse_rolls_back_at_any_step() -> None:
    verdict = judge(at(1, evidence((-0.5, 2000))))
    assert (verdict.action, verdict.at_once) == ("roll-back", True)
    assert verdict.reason.startswith("reward: reward difference -1.000")


def test_a_reward_that_may_be_worse_blocks_the_promotion_and_no_earlier_step() -> None:
    unclear = evidence((0.45, 60))
    assert judge(at(1, unclear)).action == "advance"
    verdict = judge(at(2, unclear))
    assert verdict.action == "continue"
    assert verdict.reason.startswith("reward difference -0.050, from ")


def test_the_last_step_may_ask_that_a_twofold_rate_is_ruled_out() -> None:
    strict = replace(RULES, rule_out_times=2.0)
    logs: tuple[float, ...] = ()
    for _ in range(40):
        logs = add_event(logs, canary=False, weight=0.5)
    silent, safe = evidence(), GuardrailEvidence(log_wealth=logs, e_value=e_value(logs))
    (doubt,) = missing(at(2, silent), strict)
    assert doubt == "safety may be 2 times as bad: e-value against it 1 of 20"
    assert missing(at(1, silent), strict) == missing(at(2, silent), RULES) == []
    sound = evidence(guardrails={**EMPTY.guardrails, "safety": safe})
    assert missing(at(2, sound), strict) == []


def test_rewards_of_two_steps_are_compared_within_each() -> None:
    def step(weight: float, mean: float, canary: int, stable: int) -> StepRewards:
        return StepRewards(
            weight=weight,
            count={"canary": canary, "stable": stable},
            total={"canary": mean * canary, "stable": mean * stable},
            squares={"canary": mean**2 * canary, "stable": mean**2 * stable},
        )

    ramp = replace(EMPTY, rewards=(step(0.05, 0.0, 50, 950), step(0.5, 0.8, 500, 500)))
    assert reward_difference(ramp, RULES).mean == pytest.approx(0.0)


def test_a_full_counter_ends_an_undecided_rollout() -> None:
    verdict = judge(at(1, EMPTY), full=True)
    assert (verdict.action, verdict.reason[:12]) == ("roll-back", "inconclusive")
    assert judge(at(2, evidence()), full=True).action == "promote"


def test_the_plan_changes_with_each_of_its_rules() -> None:
    who = Identity(
        rollout_id="r",
        salt="s",
        stable=Candidate(version="base"),
        candidate=Candidate(version="new"),
    )

    def plan(rules: Rules = RULES, settings: Settings | None = None, **changes: object) -> str:
        given = settings or Settings(rollout=rules)
        return plan_hash(replace(who, **changes), given)

    safer = replace(RULES.guardrails, safety=0.001)
    changed = [
        plan(replace(RULES, steps=(LAST,))),
        plan(replace(RULES, guardrails=safer)),
        plan(replace(RULES, min_rewards=1)),
        plan(replace(RULES, reward_margin=1.0)),
        plan(replace(RULES, tripwire=9)),
        plan(replace(RULES, rule_out_times=2.0)),
        plan(replace(RULES, sample_ratio_alpha=0.5)),
        plan(replace(RULES, first_token_limit_seconds=1.0)),
        plan(settings=Settings(rollout=RULES, policy=Policy(judge_share=0.5))),
        plan(settings=Settings(rollout=RULES, streams=Streams(window_seconds=1.0))),
        plan(salt="t"),
        plan(rollout_id="q"),
        plan(candidate=Candidate(version="other")),
        plan(stable=Candidate(version="other")),
    ]
    assert len({plan(), *changed}) == 15
    same = replace(
        RULES, publish_seconds=9.0, takeover_seconds=9.0, lease_seconds=99.0, cooldown_seconds=9.0
    )
    assert plan() == plan(same)


def test_a_plan_that_cannot_be_is_refused_with_what_to_give() -> None:
    def refused(**given: object) -> str:
        with pytest.raises(msgspec.ValidationError) as caught:
            msgspec.convert(given, Rules)
        return str(caught.value)

    rising = {"weight": 0.5}, {"weight": 0.5}
    assert "give them in rising order" in refused(steps=rising)
    assert "at least one of them above 0" in refused(steps=[{"weight": 0.0, "shadow_share": 0.1}])
    assert "rising order" in refused(steps=[])
    assert "give a shadow_share above 0 where the weight is 0" in refused(steps=[{"weight": 0.0}])
    spent = msgspec.to_builtins(Guardrails(safety=0.01))
    assert "rollout.guardrails spend 0.016 in all" in refused(guardrails=spent)
    assert "give at least 1.5, or 0 for off" in refused(rule_out_times=1.0)
    assert "$.steps[0]" in refused(steps=[{"weight": 1.0}])
