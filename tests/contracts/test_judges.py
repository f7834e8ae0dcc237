"""The users who judge a policy are a fixed share, known alike to every process."""

from __future__ import annotations

from contracts.judges import is_judge

USERS = [f"user-{number}" for number in range(4000)]


def test_the_share_of_judges_is_the_one_asked_for() -> None:
    judges = sum(is_judge("assistant", user, 0.2) for user in USERS)
    assert 700 < judges < 900


def test_nobody_judges_at_share_zero_and_everybody_at_one() -> None:
    assert not any(is_judge("assistant", user, 0.0) for user in USERS)
    assert all(is_judge("assistant", user, 1.0) for user in USERS)


def test_a_larger_share_only_adds_judges() -> None:
    few = {user for user in USERS if is_judge("assistant", user, 0.1)}
    more = {user for user in USERS if is_judge("assistant", user, 0.3)}
    assert few < more


def test_another_policy_has_other_judges() -> None:
    one = [is_judge("assistant", user, 0.5) for user in USERS]
    other = [is_judge("desk-de", user, 0.5) for user in USERS]
    assert one != other
