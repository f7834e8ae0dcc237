"""Which version serves a user: a salted hash against the canary's share, without any look-up."""

from __future__ import annotations

from hashlib import blake2b

from contracts.events import BASE_VERSION, Assignment, Rollout


def assign(state: Rollout | None, policy: str, user_id: str) -> Assignment:
    """Return the assignment of a user under the newest known rollout state.

    A user is in the canary iff the 64-bit hash of ``salt|user`` lies below ``weight`` * 2^64: the
    same user gets the same arm for the whole rollout, and a larger weight only adds users. With
    no state at all the base version serves. ``probability`` is that of the arm returned. In phase
    "shadow" everyone is stable, and ``canary_weight`` the candidate's share of all answers, those
    to copies included (`shadow_weight`).
    """
    if state is None:
        return Assignment(policy=policy, policy_version=BASE_VERSION)
    if state.phase == "shadow":
        return Assignment(
            policy=policy,
            policy_version=state.stable.version,
            canary_weight=shadow_weight(state.shadow_share),
            rollout_id=state.rollout_id,
        )
    if state.phase != "canary" or state.candidate is None:
        return Assignment(policy=policy, policy_version=state.stable.version)
    in_canary = in_share(state.salt, user_id, state.weight)
    return Assignment(
        policy=policy,
        policy_version=state.candidate.version if in_canary else state.stable.version,
        arm="canary" if in_canary else "stable",
        probability=state.weight if in_canary else 1.0 - state.weight,
        canary_weight=state.weight,
        rollout_id=state.rollout_id,
    )


def assign_shadow(state: Rollout, policy: str) -> Assignment:
    """Return the assignment of a copy that the candidate answers unseen, in phase "shadow"."""
    assert state.phase == "shadow" and state.candidate is not None, "only a shadow gets copies"
    return Assignment(
        policy=policy,
        policy_version=state.candidate.version,
        arm="shadow",
        probability=state.shadow_share,
        canary_weight=shadow_weight(state.shadow_share),
        rollout_id=state.rollout_id,
    )


def shadow_weight(share: float) -> float:
    """Return the candidate's share of all answers when a ``share`` of requests is copied to it."""
    return share / (1.0 + share)


def in_share(salt: str, user_id: str, share: float) -> bool:
    """Tell whether a user lies in the first ``share`` of the users under a salt."""
    return user_point(salt, user_id) < share * 2.0**64


def user_point(salt: str, user_id: str) -> int:
    """Return the user's fixed place in [0, 2^64) under a salt (blake2b, 64 bits)."""
    return int.from_bytes(blake2b(f"{salt}|{user_id}".encode(), digest_size=8).digest())
