"""What happened to an entity of late: sums over a sliding window of event time, bucket by bucket.

A bucket is a twelfth of the window. What is in the window depends on the newest decision alone, so
that late and repeated facts give the same sums in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    known = buckets.get(number)
    if known is not None:  # then no newer one has come that would have dropped others
        return known
    newest = max([number, *buckets])
    for old in [known for known in buckets if known <= newest - BUCKETS]:
        del buckets[old]
    if number <= newest - BUCKETS:
        return Bucket()
    return buckets.setdefault(number, Bucket())


def recent_values(partitions: Sequence[Mapping[int, Bucket]]) -> dict[str, Value]:
    """Return the features of the window over all partitions; a mean over nothing is None."""
    newest = max([number for buckets in partitions for number in buckets], default=0)
    total = Bucket()
    for buckets in partitions:
        for number, bucket in buckets.items():
            if number > newest - BUCKETS:
                _add(total, bucket)
    decisions = total.decisions
    return {
        "recent_decisions": decisions,
        "recent_reward_mean": _share(total.reward_sum, total.rewards),
        "recent_violation_rate": _share(total.violations, decisions),
        "recent_escalation_rate": _share(total.escalations, decisions),
        "recent_re_ask_rate": _share(total.re_asks, decisions),
        "recent_tokens_mean": _share(total.tokens, decisions),
        "recent_seconds_mean": _share(total.seconds, decisions),
    }


def _add(total: Bucket, bucket: Bucket) -> None:
    total.decisions += bucket.decisions
    total.violations += bucket.violations
    total.escalations += bucket.escalations
    total.re_asks += bucket.re_asks
    total.rewards += bucket.rewards
    total.reward_sum += bucket.reward_sum
    total.tokens += bucket.tokens
    total.seconds += bucket.seconds


def _share(total: float, count: int) -> float | None:
    return total / count if count else None
