"""Which version serves a user: a salted hash against the canary's share, without any look-up."""

from __future__ import annotations

from hashlib import blake2b

from contracts.events import BASE_VERSION, Assignment, Rollout


def assign(state: Rollout | None, policy: str, user_id: str) -> Assignment:
    """Return the assignment of a user under the newest known rollout state.

    A user is in the canary iff the 64-bit hash of ``salt|user`` lies below ``weight`` * 2^64: the
    same user gets the same arm for the whole rollout, and a larger weight only adds users. With
    no state at all the base version serves. ``probability`` is that of the arm returned.
    """
    if state is None:
        return Assignment(policy=policy, policy_version=BASE_VERSION)
    if state.phase != "canary" or state.candidate is None:
        return Assignment(policy=policy, policy_version=state.stable.version)
    in_canary = user_point(state.salt, user_id) < state.weight * 2.0**64
    return Assignment(
        policy=policy,
        policy_version=state.candidate.version if in_canary else state.stable.version,
        arm="canary" if in_canary else "stable",
        probability=state.weight if in_canary else 1.0 - state.weight,
        canary_weight=state.weight,
        rollout_id=state.rollout_id,
    )


def user_point(salt: str, user_id: str) -> int:
    """Return the user's fixed place in [0, 2^64) under a salt (blake2b, 64 bits)."""
    return int.from_bytes(blake2b(f"{salt}|{user_id}".encode(), digest_size=8).digest())
