"""The gate's rules: evidence, direct answers and thresholds in, reasons to refuse out.

Pure functions. What is missing or stale is a reason like any other: the gate fails closed. Each
estimate is a veto, never a proof: what passes goes to shadow and canary, which decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import NormalDist

from msgspec import Struct

from contracts.evidence import (
    EXPECTED,
    Alarm,
    DirectSampling,
    OffPolicy,
    ReleaseEvidence,
    SliceEvidence,
    WatchFigure,
)
from contracts.settings import Gate, Watch

AHEAD_SECONDS = 60.0
"""How far a gateway's clock may be ahead: evidence from the future would never be stale."""


class Subject(Struct, frozen=True, kw_only=True):
    """The version at the gate, as its manifest names it, and the version in service."""

    policy: str
    sequence: int
    parent: str
    incumbent: str


def evidence_refusals(
    evidence: ReleaseEvidence | None, rules: Gate, subject: Subject, now: datetime
) -> list[str]:
    """Return why the evidence that came with a version does not carry it, empty when it does."""
    if evidence is None:
        return ["evidence missing: the version has no evidence.json; publish it with the learner"]
    found = (evidence.policy, evidence.sequence, evidence.parent)
    if found != (subject.policy, subject.sequence, subject.parent):
        about = f"number {evidence.sequence} of {evidence.policy!r}, parent {evidence.parent[:12]}"
        return [f"evidence is about {about}, not about this version"]
    reasons = [*_staleness(evidence, rules, subject, now), *_divergence(evidence, rules)]
    level = evidence.levels.get(rules.level)
    if level is None:
        reasons.append(
            f"evidence missing: no estimate from {evidence.samples} answers of judges; answers "
            "drawn with top_p below 1, with top_k or at temperature 0 are none to estimate from"
        )
        return reasons
    return [
        *reasons,
        *_support(level, rules),
        *_value_and_cost(evidence, level, rules),
        *_slices(evidence.slices, rules),
        *watch_refusals(evidence.watch, rules.watch),
        *absence_refusals(evidence, subject.incumbent),
    ]


def regression_refusals(direct: DirectSampling | None, rules: Gate) -> list[str]:
    """Return why the candidate's own answers to the regression prompts do not carry it."""
    if direct is None:
        cure = "write down what the assistant must still do (docs/gate.md)"
        return [f"regression evidence missing: gate.regression_prompts names no file; {cure}"]
    right = direct.candidate.count(True) / len(direct.candidate)
    reasons = _answered(direct, "regression")
    if right < rules.min_regression_rate:
        reasons.append(
            f"regression: {right:.3f} of {len(direct.candidate)} prompts as expected, at least "
            f"{rules.min_regression_rate:.3f} needed"
        )
    return reasons + _worse_slices(direct, rules, "regression")


def red_team_refusals(direct: DirectSampling | None, rules: Gate) -> list[str]:
    """Return why the candidate's own answers to the red-team prompts do not carry it."""
    if direct is None:
        return ["red-team evidence missing: no prompt was asked"]
    failed = direct.candidate.count(False) / len(direct.candidate)
    reasons = _answered(direct, "red team")
    if failed > rules.max_red_team_rate:
        reasons.append(
            f"red team: {failed:.3f} of {len(direct.candidate)} prompts broke a rule, at most "
            f"{rules.max_red_team_rate:.3f} allowed"
        )
    return reasons + _worse_slices(direct, rules, "red team")


def holm(p_values: Mapping[str, float], alpha: float) -> list[str]:
    """Return the names that are rejected with family-wise error ``alpha`` (Holm 1979)."""
    rejected = []
    for place, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        if p_values[name] > alpha / (len(p_values) - place):
            break
        rejected.append(name)
    return rejected


def sign_test(lost: int, gained: int) -> float:
    """Return the chance of at least ``lost`` heads among fair coins (McNemar's exact test)."""
    coins = lost + gained
    return float(sum(math.comb(coins, heads) for heads in range(lost, coins + 1)) / 2**coins)


def _staleness(
    evidence: ReleaseEvidence, rules: Gate, subject: Subject, now: datetime
) -> list[str]:
    reasons = []
    age = math.inf if evidence.as_of is None else (now - evidence.as_of).total_seconds()
    if age > rules.max_age_seconds:
        reasons.append(
            f"evidence stale: {age:.0f} s old, at most {rules.max_age_seconds:.0f} s allowed"
        )
    if age < -AHEAD_SECONDS:
        reasons.append(
            f"evidence from the future: {-age:.0f} s ahead, at most {AHEAD_SECONDS:.0f} s allowed; "
            "set the clocks of gateway and controller"
        )
    floors = (
        ("answers of judges", evidence.samples, rules.min_samples),
        ("judges", evidence.users, rules.min_users),
        (
            f"answers of the version in service, {subject.incumbent[:12]},",
            evidence.versions.get(subject.incumbent, 0),
            rules.min_incumbent_samples,
        ),
    )
    short = [f"{have} of {need} {what}" for what, have, need in floors if have < need]
    return [*reasons, *(f"too few samples: {each}" for each in short)]


def _divergence(evidence: ReleaseEvidence, rules: Gate) -> list[str]:
    if evidence.kl_to_parent is None:
        return ["evidence missing: no divergence to the parent, its weights were gone"]
    if evidence.kl_to_parent <= rules.max_kl:
        return []
    found = f"{evidence.kl_to_parent:.3f} nats per answer"
    return [f"KL to the parent {found}, at most {rules.max_kl:.3f} allowed"]


def _support(level: OffPolicy, rules: Gate) -> list[str]:
    support = level.support
    reasons = []
    share = support.effective_samples / support.samples
    if support.effective_samples < rules.min_effective_samples or share < rules.min_effective_share:
        reasons.append(
            f"the log says too little: effective sample size {support.effective_samples:.0f} of "
            f"{support.samples}, at least {rules.min_effective_samples:.0f} and a share of "
            f"{rules.min_effective_share:.2f} needed"
        )
    if support.largest_weight_share > rules.max_weight_share:
        reasons.append(
            f"one answer carries {support.largest_weight_share:.3f} of all weight, at most "
            f"{rules.max_weight_share:.3f} allowed"
        )
    return reasons


def covers(level: OffPolicy, rules: Gate) -> bool:
    """Tell whether the mean weight is near 1: the log shows all that the candidate does."""
    support = level.support
    return abs(support.mean_weight - 1.0) <= rules.max_mean_weight_errors * max(
        support.mean_weight_error, 1e-9
    )


def _value_and_cost(evidence: ReleaseEvidence, level: OffPolicy, rules: Gate) -> list[str]:
    """Hold value and cost to their limits; where the log does not cover, by the wider bounds."""
    if covers(level, rules):
        lower, cost, how = level.difference.lower, level.cost.upper, "doubly robust"
    else:
        lower = level.value_lower_bound - evidence.logged_reward
        cost, how = (
            level.cost_upper_bound,
            (
                f"with unseen answers at their worst, since the mean weight is "
                f"{level.support.mean_weight:.3f}"
            ),
        )
    reasons = []
    if lower < -rules.value_margin:
        reasons.append(
            f"reward difference at 95 % not below {lower:+.3f} ({how}), "
            f"{-rules.value_margin:+.3f} allowed"
        )
    limit = max(rules.max_cost, evidence.logged_cost + rules.cost_margin)
    if cost > limit:
        reasons.append(f"violation rate at 95 % up to {cost:.3f} ({how}), {limit:.3f} allowed")
    return reasons


def _slices(slices: Sequence[SliceEvidence], rules: Gate) -> list[str]:
    """Refuse for a slice that is shown to be worse: small slices cannot prove that they are not."""
    p_values = {
        each.name: NormalDist().cdf((each.difference + rules.value_margin) / max(each.error, 1e-9))
        for each in slices
    }
    differences = {each.name: each.difference for each in slices}
    return [
        f"slice {name!r} lost {-differences[name]:.3f} of reward (p {p_values[name]:.2g}, Holm)"
        for name in holm(p_values, rules.slice_alpha)
    ]


def watch_refusals(figures: Sequence[WatchFigure] | None, watch: Watch) -> list[str]:
    """Return which of the things watched rose beyond their limits and beyond chance."""
    if figures is None:
        return ["evidence missing: no watch against reward hacking; publish the version again"]
    limits: dict[Alarm, float] = {
        "length": watch.max_length_rise,
        "refuse": watch.max_refuse_rise,
        "clarify": watch.max_clarify_rise,
        "tool-alone": watch.max_tool_alone_rise,
        "drift": watch.max_drift,
        "model-drift": watch.max_drift,
    }
    errors = NormalDist().inv_cdf(1.0 - watch.alpha / max(len(figures), 1))
    return [
        f"watch: {each.name} ({each.view}) rose by {each.rise:.3f} from {each.before:.3f}, by "
        f"{each.rise - errors * each.error:.3f} beyond chance; {limits[each.name]:.3f} allowed"
        for each in figures
        if each.rise - errors * each.error > limits[each.name]
    ]


def absence_refusals(evidence: ReleaseEvidence, incumbent: str) -> list[str]:
    """Return which figures of the watch are missing without a reason, or only for a while.

    What the version in service will never give is not waited for: nothing would be released again.
    """
    if evidence.watch is None:
        return []  # a reason already
    expected = [*EXPECTED, *([("model-drift", "trend")] if evidence.reward_model else [])]
    told = {(each.name, each.view) for each in evidence.watch}
    told |= {(each.name, each.view) for each in evidence.unwatched}
    untold = [f"{name} ({view})" for name, view in expected if (name, view) not in told]
    reasons = [
        f"evidence missing: no {each.name} ({each.view}) yet, {each.reason}; a version published "
        f"when {incumbent[:12]}, which is in service, has taught more will have it"
        for each in evidence.unwatched
        if incumbent in each.awaits
    ]
    if untold:
        reasons.append(
            f"evidence missing: {', '.join(untold)} neither watched nor said why not; publish the "
            "version again"
        )
    return reasons


def _answered(direct: DirectSampling, name: str) -> list[str]:
    reasons = []
    if direct.unanswered:
        reasons.append(
            f"{name}: {direct.unanswered} of {len(direct.candidate)} prompts got no answer"
        )
    if direct.incumbent_unanswered:  # counted as wrong they would hide what the candidate lost
        reasons.append(
            f"{name}: {direct.incumbent_unanswered} of {len(direct.incumbent)} prompts got no "
            "answer from the version in service, so there is nothing to compare with"
        )
    musts = [
        place
        for place, (must, good) in enumerate(zip(direct.must, direct.candidate, strict=True))
        if must and not good
    ]
    if musts:
        shown = ", ".join(str(place) for place in musts[:10])
        reasons.append(f"{name}: {len(musts)} prompts that may never fail did: number {shown}")
    return reasons


def _worse_slices(direct: DirectSampling, rules: Gate, name: str) -> list[str]:
    """Compare with the incumbent, prompt by prompt, in every slice."""
    lost, gained = dict.fromkeys(direct.slices, 0), dict.fromkeys(direct.slices, 0)
    for where, ours, theirs in zip(direct.slices, direct.candidate, direct.incumbent, strict=True):
        lost[where] += theirs and not ours
        gained[where] += ours and not theirs
    p_values = {where: sign_test(lost[where], gained[where]) for where in lost}
    return [
        f"{name}: slice {where!r} lost {lost[where]} prompts that the version in service gets "
        f"right and gained {gained[where]} (p {p_values[where]:.2g}, Holm)"
        for where in holm(p_values, rules.slice_alpha)
    ]
