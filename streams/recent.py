"""What happened to an entity of late: sums over a sliding window of event time, bucket by bucket.

A bucket is a twelfth of the window. What is in the window depends on the newest decision alone, so
that late and repeated facts give the same sums in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from msgspec import Struct

from feature_store.views import Value

BUCKETS = 12


class Bucket(Struct, array_like=True):
    """Sums over the decisions made in one stretch of time."""

    decisions: int = 0
    violations: int = 0
    escalations: int = 0
    re_asks: int = 0
    rewards: int = 0
    reward_sum: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


def bucket_number(moment: datetime, window_seconds: float) -> int:
    """Return the number of the bucket that a moment is in."""
    return int(moment.timestamp() * BUCKETS // window_seconds)


def bucket_at(buckets: dict[int, Bucket], number: int) -> Bucket:
    """Return the bucket of that number, one that lasts if it is in the window; drop older ones."""
    newest = max([number, *buckets])
    for old in [known for known in buckets if known <= newest - BUCKETS]:
        del buckets[old]
    if number <= newest - BUCKETS:
        return Bucket()
    return buckets.setdefault(number, Bucket())


def recent_values(partitions: Iterable[Mapping[int, Bucket]]) -> dict[str, Value]:
    """Return the features of the window over all partitions; a mean over nothing is None."""
    known = list(partitions)
    newest = max((number for buckets in known for number in buckets), default=0)
    kept = [
        bucket
        for buckets in known
        for number, bucket in buckets.items()
        if number > newest - BUCKETS
    ]
    decisions = sum(bucket.decisions for bucket in kept)
    rewards = sum(bucket.rewards for bucket in kept)
    return {
        "recent_decisions": decisions,
        "recent_reward_mean": _share(sum(bucket.reward_sum for bucket in kept), rewards),
        "recent_violation_rate": _share(sum(bucket.violations for bucket in kept), decisions),
        "recent_escalation_rate": _share(sum(bucket.escalations for bucket in kept), decisions),
        "recent_re_ask_rate": _share(sum(bucket.re_asks for bucket in kept), decisions),
        "recent_tokens_mean": _share(sum(bucket.tokens for bucket in kept), decisions),
        "recent_seconds_mean": _share(sum(bucket.seconds for bucket in kept), decisions),
    }


def _share(total: float, count: int) -> float | None:
    return total / count if count else None
