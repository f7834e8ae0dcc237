"""The verdict on a canary: evidence and rules in, continue, promote or roll back out.

Pure functions. The safety test may be looked at as often as one likes (`serving.eprocess`); the
comparison of rewards may not, it is a plain Welch bound at each look: it keeps a candidate that is
clearly worse from passing, but its error rate over many looks is not controlled. So reward alone
never promotes, and silence never does: without enough evidence in time the canary is rolled back.
"""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Literal

from msgspec import Struct

from contracts.codec import to_json
from contracts.events import Arm, Candidate, Evidence
from contracts.settings import Rollout as Rules
from serving.eprocess import ODDS_RATIOS

Z_ONE_SIDED_95 = 1.6449

SILENT = 1.0
"""Up to here the violations seen do not speak against the canary; with none at all E is 1.

Between this and ``1/alpha`` nothing is proved and nothing is promoted: a minimum sample is reached
long before the test can have spoken.
"""


class Verdict(Struct, frozen=True):
    """What to do now and why, in words that carry the figures.

    ``at_once`` is set on harm: it need not wait until everything that was written is counted.
    """

    action: Literal["continue", "promote", "roll-back"]
    reason: str
    at_once: bool = False


class RewardDifference(Struct, frozen=True):
    """Mean reward of the canary minus that of the concurrent stable arm, one-sided 95 % bound."""

    mean: float
    lower_bound: float


def decide(
    evidence: Evidence, rules: Rules, elapsed_seconds: float, *, full: bool = False
) -> Verdict:
    """Judge the rollout under way.

    ``elapsed_seconds`` counts from the rollout's start; ``full`` says that the counter can take
    no more. Harm is looked at first, then sufficiency, and time last.
    """
    threshold = 1.0 / rules.alpha
    if evidence.e_value >= threshold:
        return Verdict(
            "roll-back",
            f"safety: e-value {evidence.e_value:.4g} reached {threshold:.4g}, violations "
            f"{_both(evidence.violations)} of requests {_both(evidence.requests)}",
            at_once=True,
        )
    doubts = missing(evidence, rules)
    if not doubts:
        return Verdict("promote", _case_for(evidence))
    if full:
        return Verdict("roll-back", f"inconclusive: the counter is full; {'; '.join(doubts)}")
    if elapsed_seconds >= rules.max_wait_seconds:
        return Verdict(
            "roll-back",
            f"inconclusive after {rules.max_wait_seconds:.0f} s: {'; '.join(doubts)}",
        )
    return Verdict("continue", "; ".join(doubts))


def missing(evidence: Evidence, rules: Rules) -> list[str]:
    """Return what still stands against a promotion, empty when nothing does.

    Rewards are asked of both arms: with an empty control there is nothing to compare with, which
    is the usual case for the first releases of a small site with a large canary weight.
    """
    needs = (
        ("canary requests", evidence.requests.get("canary", 0), rules.min_canary_requests),
        ("canary users", evidence.users.get("canary", 0), rules.min_canary_users),
        ("canary rewards", evidence.reward_count.get("canary", 0), rules.min_rewards),
        ("stable rewards", evidence.reward_count.get("stable", 0), rules.min_rewards),
    )
    doubts = [f"{have} of {need} {what}" for what, have, need in needs if have < need]
    if evidence.e_value > SILENT:
        doubts.append(f"safety in doubt: e-value {evidence.e_value:.4g}, silent up to {SILENT:g}")
    if not doubts:
        difference = reward_difference(evidence)
        if difference.lower_bound < -rules.reward_margin:
            doubts.append(
                f"reward difference {difference.mean:+.3f}, at 95 % not below "
                f"{difference.lower_bound:+.3f}; allowed {-rules.reward_margin:+.3f}"
            )
    return doubts


def reward_difference(evidence: Evidence) -> RewardDifference:
    """Compare the arms' mean rewards by Welch's standard error and the normal quantile.

    Not a confidence sequence: the bound holds at one look fixed beforehand. The variance is at
    least 1/n, since n equal rewards do not prove that there is no other. Needs a reward in each
    arm, else ZeroDivisionError.
    """
    canary, stable = _mean_and_error(evidence, "canary"), _mean_and_error(evidence, "stable")
    mean = canary[0] - stable[0]
    return RewardDifference(mean, mean - Z_ONE_SIDED_95 * math.hypot(canary[1], stable[1]))


def plan_hash(
    rules: Rules, rollout_id: str, salt: str, stable: Candidate, candidate: Candidate
) -> str:
    """Return the sha256 of everything that decides this rollout, fixed before its first request."""
    plan = {
        "alpha": rules.alpha,
        "canary_weight": rules.canary_weight,
        "candidate": candidate.version,
        "max_wait_seconds": rules.max_wait_seconds,
        "min_canary_requests": rules.min_canary_requests,
        "min_canary_users": rules.min_canary_users,
        "min_rewards": rules.min_rewards,
        "odds_ratios": ODDS_RATIOS,
        "reward_margin": rules.reward_margin,
        "reward_quantile": Z_ONE_SIDED_95,
        "rollout_id": rollout_id,
        "salt": salt,
        "silent": SILENT,
        "stable": stable.version,
    }
    return sha256(to_json(plan)).hexdigest()


def _mean_and_error(evidence: Evidence, arm: Arm) -> tuple[float, float]:
    count = evidence.reward_count[arm]
    mean = evidence.reward_sum[arm] / count
    spread = evidence.reward_sum_squares[arm] - count * mean * mean
    variance = max(spread / max(count - 1, 1), 1.0 / count)
    return mean, math.sqrt(variance / count)


def _case_for(evidence: Evidence) -> str:
    difference = reward_difference(evidence)
    return (
        f"safety silent (e-value {evidence.e_value:.4g}) after requests "
        f"{_both(evidence.requests)}; reward difference {difference.mean:+.3f}, at 95 % not below "
        f"{difference.lower_bound:+.3f}"
    )


def _both(counts: dict[Arm, int]) -> str:
    return f"{counts.get('canary', 0)} canary / {counts.get('stable', 0)} stable"
