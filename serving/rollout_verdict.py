"""The verdict on a candidate: state and rules in; go on, hold, pause, promote or roll back out.

Pure functions. Every test here may be looked at as often as one likes (`serving.eprocess`,
`serving.confidence_sequence`, `serving.sample_ratio`). Any of them alone rolls back or pauses;
none alone promotes, and silence never does: what stays inconclusive goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import asdict

from contracts.events import Arm, Evidence, GuardrailEvidence, Rollout, StepRewards
from contracts.settings.rollout import Rollout as Rules
from serving.confidence_sequence import Interval, RewardSums, difference_over_steps
from serving.eprocess import e_value_against
from serving.rollout_guardrails import GUARDRAILS
from serving.rollout_plan import SILENT, is_last, largest_share, step_of
from serving.tripwire import trips

RULED_OUT = 20.0
"""E against a candidate that is so many times as bad: evidence at 5 %."""


class Verdict(Struct, frozen=True):
    """What to do now and why, in words that carry the figures.

    ``at_once`` is set on harm: it need not wait until everything that was written is counted.
    """

    action: Literal["continue", "advance", "hold", "pause", "promote", "roll-back"]
    reason: str
    at_once: bool = False


def decide(state: Rollout, rules: Rules, now: datetime, *, full: bool = False) -> Verdict:
    """Judge the rollout under way in ``state``, whose evidence is the newest.

    ``full`` says that the counter can take no more. Harm is looked at first, then whether the arms
    can be compared at all, then sufficiency, and time last.
    """
    evidence = state.evidence
    if harm := found_harm(state, rules):
        return Verdict("roll-back", harm, at_once=True)
    if state.paused:
        return Verdict("continue", f"paused: {state.paused}")
    if evidence.sample_ratio.e_value >= 1.0 / rules.sample_ratio_alpha:
        return Verdict("pause", _sample_ratio_text(evidence, rules), at_once=True)
    doubts = missing(state, rules)
    if not doubts:
        last = is_last(state, rules)
        return Verdict("promote" if last else "advance", _case_for(evidence, rules))
    said = "; ".join(doubts)
    if full:
        return Verdict("roll-back", f"inconclusive: the counter is full; {said}")
    return _in_time(state, rules, now, said)


def _in_time(state: Rollout, rules: Rules, now: datetime, doubts: str) -> Verdict:
    """Wait for what is missing; a step is held once for as long again, then it is over.

    The hold has its whole time even where nobody looked when it should have begun.
    """
    wait = step_of(state, rules).max_wait_seconds
    elapsed = (now - (state.step_started_at or now)).total_seconds()
    if not state.held:
        reason = f"inconclusive after {wait:.0f} s, held once: {doubts}"
        return Verdict("hold", reason) if elapsed >= wait else Verdict("continue", doubts)
    on_hold = elapsed - wait if state.held_at is None else (now - state.held_at).total_seconds()
    if on_hold >= wait:
        return Verdict(
            "roll-back", f"inconclusive after {wait:.0f} s and as long on hold: {doubts}"
        )
    return Verdict("continue", doubts)


def found_harm(state: Rollout, rules: Rules) -> str:
    """Return the proof that the candidate does harm, "" when there is none."""
    evidence = state.evidence
    severe, share = evidence.severe, largest_share(state, rules)
    canary = severe.get("canary", 0) + severe.get("shadow", 0)
    if trips(canary, severe.get("stable", 0), share, rules.tripwire):
        return f"tripwire: users with a severe finding {_both(severe)}, at a share of {share:.3g}"
    levels = asdict(rules.guardrails)
    for name in GUARDRAILS:
        found, threshold = evidence.guardrails.get(name, GuardrailEvidence()), 1.0 / levels[name]
        if found.e_value >= threshold:
            return (
                f"{name}: e-value {found.e_value:.4g} reached {threshold:.4g}, "
                f"events {_both(found.events)} of requests {_both(evidence.requests)}"
            )
    difference = reward_difference(evidence, rules)
    if difference.upper < -rules.reward_margin:
        return f"reward: {_interval(difference)}, allowed {-rules.reward_margin:+.3f}"
    return ""


def missing(state: Rollout, rules: Rules) -> list[str]:
    """Return what still stands against the next step, empty when nothing does.

    Rewards are asked of both arms: with an empty control there is nothing to compare with. They
    decide at the last step alone, since the first ones have too few; and never in the shadow.
    """
    evidence, step = state.evidence, step_of(state, rules)
    needs = [
        ("canary requests", evidence.step_requests, step.min_canary_requests),
        ("canary users", evidence.step_users, step.min_canary_users),
    ]
    if is_last(state, rules):
        needs += [
            (f"{arm} rewards of judges", count, rules.min_rewards)
            for arm, count in judged(evidence).items()
        ]
    doubts = [f"{have} of {need} {what}" for what, have, need in needs if have < need]
    for name in GUARDRAILS:
        found = evidence.guardrails.get(name, GuardrailEvidence())
        if found.e_value > SILENT:
            doubts.append(
                f"{name} in doubt: e-value {found.e_value:.4g}, silent up to {SILENT:g}, "
                f"events {_both(found.events)}"
            )
    if state.phase != "shadow" and not _matured(state):
        doubts.append("no attribution window of this step has closed yet")
    if is_last(state, rules) and rules.rule_out_times:
        doubts += _not_ruled_out(evidence, rules)
    if is_last(state, rules) and not doubts:
        difference = reward_difference(evidence, rules)
        if difference.lower < -rules.reward_margin:
            doubts.append(f"{_interval(difference)}, allowed {-rules.reward_margin:+.3f}")
    return doubts


def _not_ruled_out(evidence: Evidence, rules: Rules) -> list[str]:
    """Say that a candidate so many times as unsafe is still possible; none when it is not."""
    found = evidence.guardrails.get("safety", GuardrailEvidence())
    against = e_value_against(found.log_wealth, times=rules.rule_out_times)
    if against >= RULED_OUT:
        return []
    times = f"{rules.rule_out_times:g} times as bad"
    return [f"safety may be {times}: e-value against it {against:.4g} of {RULED_OUT:g}"]


def judged(evidence: Evidence) -> dict[Arm, int]:
    """Return the number of judges' rewards of each arm, over all steps."""
    arms: tuple[Arm, ...] = ("canary", "stable")
    return {arm: sum(step.count.get(arm, 0) for step in evidence.rewards) for arm in arms}


def reward_difference(evidence: Evidence, rules: Rules) -> Interval:
    """Return the bounds of the canary's mean reward minus the stable one's, over the steps."""
    pairs = [(_sums(step, "canary"), _sums(step, "stable")) for step in evidence.rewards]
    return difference_over_steps(pairs, rules.guardrails.reward)


def _sums(step: StepRewards, arm: Arm) -> RewardSums:
    counts, totals, squares = step.count, step.total, step.squares
    return RewardSums(counts.get(arm, 0), totals.get(arm, 0.0), squares.get(arm, 0.0))


def _matured(state: Rollout) -> bool:
    """Whether the attribution watermark has passed the beginning of the step."""
    mark, began = state.evidence.watermark, state.step_started_at
    return mark is not None and began is not None and mark >= began


def _case_for(evidence: Evidence, rules: Rules) -> str:
    values = ", ".join(f"{name} {found.e_value:.4g}" for name, found in evidence.guardrails.items())
    said = f"guardrails silent ({values}) after requests {_both(evidence.requests)}"
    return f"{said}; {_interval(reward_difference(evidence, rules))}" if evidence.rewards else said


def _sample_ratio_text(evidence: Evidence, rules: Rules) -> str:
    found, threshold = evidence.sample_ratio, 1.0 / rules.sample_ratio_alpha
    return (
        f"sample ratio: e-value {found.e_value:.4g} reached {threshold:.4g}, users "
        f"{_both(found.events)}: assignment or counting is broken, and nothing measured holds"
    )


def _interval(found: Interval) -> str:
    return f"reward difference {found.mean:+.3f}, from {found.lower:+.3f} to {found.upper:+.3f}"


def _both(counts: Mapping[Arm, int]) -> str:
    canary = counts.get("canary", 0) + counts.get("shadow", 0)
    return f"{canary} canary / {counts.get('stable', 0)} stable"
