"""Assignment: sticky, monotone in the weight, and honest about its probability."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.events import BASE_VERSION
from serving.assignment import assign, assign_shadow, shadow_weight, user_point
from tests.serving.rollout_states import canary_state

users = st.text(min_size=1, max_size=64)
weights = st.floats(min_value=0.0, max_value=1.0)


def test_without_a_state_the_base_version_serves() -> None:
    found = assign(None, "assistant", "u")
    assert (found.policy_version, found.arm, found.probability) == (BASE_VERSION, "stable", 1.0)
    assert found.rollout_id is None


@pytest.mark.parametrize("phase", ["idle", "promoted", "rolled-back", "refused"])
def test_outside_of_a_canary_everybody_gets_the_stable_version(phase: str) -> None:
    state = msgspec.structs.replace(canary_state(1.0), phase=phase)
    found = assign(state, "assistant", "u")
    assert (found.policy_version, found.arm, found.canary_weight) == ("old", "stable", 0.0)
    assert found.rollout_id is None


@given(user=users, share=weights)
def test_in_the_shadow_everybody_is_stable_and_only_copies_are_the_candidates(
    user: str, share: float
) -> None:
    state = msgspec.structs.replace(canary_state(0.0), phase="shadow", shadow_share=share)
    served, copied = assign(state, "assistant", user), assign_shadow(state, "assistant")
    assert (served.policy_version, served.arm, served.probability) == ("old", "stable", 1.0)
    assert (copied.policy_version, copied.arm, copied.probability) == ("new", "shadow", share)
    assert served.canary_weight == copied.canary_weight == shadow_weight(share)
    assert served.rollout_id == copied.rollout_id == "rollout-1"


def test_the_weight_of_a_shadow_is_its_share_of_all_answers() -> None:
    assert [shadow_weight(share) for share in (0.0, 0.25, 1.0)] == [0.0, 0.2, 0.5]


@given(user=users, weight=weights, salt=users)
def test_a_user_keeps_the_arm_and_the_probability_is_that_of_the_arm(
    user: str, weight: float, salt: str
) -> None:
    state = canary_state(weight, salt)
    found = assign(state, "assistant", user)
    assert found == assign(state, "assistant", user)
    assert found.probability == (weight if found.arm == "canary" else 1.0 - weight)
    assert found.probability > 0.0
    assert found.policy_version == ("new" if found.arm == "canary" else "old")
    assert (found.canary_weight, found.rollout_id) == (weight, "rollout-1")


@given(user=users, one=weights, other=weights)
def test_a_larger_weight_never_moves_a_canary_user_back(
    user: str, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if assign(canary_state(low), "assistant", user).arm == "canary":
        assert assign(canary_state(high), "assistant", user).arm == "canary"


def test_the_share_of_canary_users_is_the_weight_and_a_new_salt_draws_others() -> None:
    names = [f"user-{number}" for number in range(20_000)]
    drawn = {
        salt: {n for n in names if assign(canary_state(0.05, salt), "p", n).arm == "canary"}
        for salt in ("a", "b")
    }
    # five standard errors of a share of 5 % among 20,000 users
    assert abs(len(drawn["a"]) / 20_000 - 0.05) < 5 * (0.05 * 0.95 / 20_000) ** 0.5
    assert len(drawn["a"] & drawn["b"]) < 0.2 * len(drawn["a"])


def test_the_hash_is_fixed_for_all_gateways() -> None:
    assert user_point("salt", "user") == 14018329355428215222
