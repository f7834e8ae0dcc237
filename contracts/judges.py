"""Who judges: a fixed share of users whose feedback never trains a policy.

The learner leaves their samples out, the release gate estimates from them, and the rollout
controller compares rewards by them alone: nobody can teach a version and then vouch for it.
"""

from __future__ import annotations

from hashlib import blake2b


def is_judge(policy: str, user_id: str, share: float) -> bool:
    """Tell whether a user is one of the ``share`` of users, in [0, 1], who judge a policy.

    A hash decides (blake2b, 64 bits), independent of every rollout's assignment; so the set is the
    same in every process and for ever, and a larger share only adds users.
    """
    point = int.from_bytes(blake2b(f"judge|{policy}|{user_id}".encode(), digest_size=8).digest())
    return point < share * 2.0**64
