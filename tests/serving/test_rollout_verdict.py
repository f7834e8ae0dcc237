"""The verdict: harm first, then sufficiency, then time; silence never promotes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from contracts.events import Candidate, Evidence
from contracts.settings import Rollout as Rules
from serving.rollout_evidence import EMPTY
from serving.rollout_verdict import Z_ONE_SIDED_95, decide, missing, plan_hash, reward_difference

RULES = Rules(
    canary_weight=0.05,
    min_canary_requests=300,
    min_canary_users=50,
    min_rewards=50,
    max_wait_seconds=600,
    alpha=0.01,
    reward_margin=0.05,
)


def evidence(
    canary: tuple[float, int] = (0.5, 200), stable: tuple[float, int] = (0.5, 4000)
) -> Evidence:
    """Enough of everything; rewards given as (mean, count) with a variance of 0.04."""
    return msgspec.structs.replace(
        EMPTY,
        requests={"canary": 300, "stable": 5700},
        users={"canary": 50, "stable": 950},
        reward_count={"canary": canary[1], "stable": stable[1]},
        reward_sum={"canary": canary[0] * canary[1], "stable": stable[0] * stable[1]},
        reward_sum_squares={
            "canary": canary[1] * (canary[0] ** 2 + 0.04),
            "stable": stable[1] * (stable[0] ** 2 + 0.04),
        },
    )


def test_enough_evidence_of_an_equal_candidate_promotes() -> None:
    verdict = decide(evidence(), RULES, 10.0)
    assert verdict.action == "promote"
    assert "reward difference +0.000" in verdict.reason


def test_harm_rolls_back_at_once_whatever_else_is_known() -> None:
    bad = msgspec.structs.replace(evidence(canary=(1.0, 200)), e_value=100.0)
    verdict = decide(bad, RULES, 0.0)
    assert (verdict.action, verdict.at_once) == ("roll-back", True)
    assert verdict.reason.startswith("safety")
    little = msgspec.structs.replace(EMPTY, e_value=100.0)
    assert decide(little, RULES, 0.0).action == "roll-back"


def test_while_violations_lean_to_the_canary_without_proof_nothing_is_promoted() -> None:
    doubtful = msgspec.structs.replace(evidence(), e_value=1.5)
    assert decide(doubtful, RULES, 0.0).action == "continue"
    late = decide(doubtful, RULES, 600.0)
    assert late.reason == "inconclusive after 600 s: safety in doubt: e-value 1.5, silent up to 1"
    fewer = msgspec.structs.replace(evidence(), e_value=0.2)
    assert decide(fewer, RULES, 0.0).action == "promote"


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({"requests": {"canary": 299, "stable": 9}}, "299 of 300 canary requests"),
        ({"users": {"canary": 49, "stable": 9}}, "49 of 50 canary users"),
        ({"reward_count": {"canary": 49, "stable": 99}}, "49 of 50 canary rewards"),
        ({"reward_count": {"canary": 99, "stable": 49}}, "49 of 50 stable rewards"),
    ],
)
def test_without_enough_of_each_the_canary_goes_on_until_time_is_up(
    change: dict[str, object], doubt: str
) -> None:
    little = msgspec.structs.replace(evidence(), **change)
    assert missing(little, RULES) == [doubt]
    assert decide(little, RULES, 599.0).action == "continue"
    late = decide(little, RULES, 600.0)
    assert (late.action, late.at_once) == ("roll-back", False)
    assert late.reason == f"inconclusive after 600 s: {doubt}"


def test_nothing_at_all_is_never_promoted() -> None:
    assert decide(EMPTY, RULES, 0.0).action == "continue"
    assert decide(Evidence(), RULES, 10_000.0).action == "roll-back"


def test_a_worse_reward_is_not_promoted_and_rolled_back_in_the_end() -> None:
    worse = evidence(canary=(0.4, 200))
    assert decide(worse, RULES, 0.0).action == "continue"
    assert "reward difference -0.100" in decide(worse, RULES, 600.0).reason


def test_a_full_counter_ends_an_undecided_rollout() -> None:
    verdict = decide(EMPTY, RULES, 0.0, full=True)
    assert (verdict.action, verdict.reason[:12]) == ("roll-back", "inconclusive")
    assert decide(evidence(), RULES, 0.0, full=True).action == "promote"


def test_the_bound_is_that_of_welch() -> None:
    rng = np.random.default_rng(3)
    canary, stable = rng.normal(0.3, 0.4, 80), rng.normal(0.25, 0.3, 400)
    found = reward_difference(
        Evidence(
            reward_count={"canary": 80, "stable": 400},
            reward_sum={"canary": canary.sum(), "stable": stable.sum()},
            reward_sum_squares={"canary": (canary**2).sum(), "stable": (stable**2).sum()},
        )
    )
    error = np.sqrt(canary.var(ddof=1) / 80 + stable.var(ddof=1) / 400)
    assert found.mean == pytest.approx(canary.mean() - stable.mean())
    assert found.lower_bound == pytest.approx(found.mean - Z_ONE_SIDED_95 * error)


def test_equal_rewards_leave_room_for_doubt() -> None:
    sure = Evidence(
        reward_count={"canary": 50, "stable": 50},
        reward_sum={"canary": 50.0, "stable": 50.0},
        reward_sum_squares={"canary": 50.0, "stable": 50.0},
    )
    assert reward_difference(sure).lower_bound == pytest.approx(-Z_ONE_SIDED_95 * 0.02 * 2**0.5)


def test_the_plan_changes_with_each_of_its_rules() -> None:
    stable, candidate = Candidate(version="base"), Candidate(version="new")

    def plan(rules: Rules = RULES, salt: str = "s", new: Candidate = candidate) -> str:
        return plan_hash(rules, "r", salt, stable, new)

    changed = [
        plan(msgspec.structs.replace(RULES, alpha=0.02)),
        plan(msgspec.structs.replace(RULES, canary_weight=0.1)),
        plan(msgspec.structs.replace(RULES, min_canary_requests=1)),
        plan(msgspec.structs.replace(RULES, min_canary_users=1)),
        plan(msgspec.structs.replace(RULES, min_rewards=1)),
        plan(msgspec.structs.replace(RULES, max_wait_seconds=1)),
        plan(msgspec.structs.replace(RULES, reward_margin=1)),
        plan(salt="t"),
        plan(new=Candidate(version="other")),
    ]
    assert len({plan(), *changed}) == 10
    assert plan() == plan(msgspec.structs.replace(RULES, publish_seconds=9.0))
