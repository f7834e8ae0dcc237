"""What the feature store knew of a user when a decision was made: an input of the baseline.

Harsh and kind raters differ in their mean reward; the baseline takes that out of the advantage.
Samples carry what the gateway had; only for those that do not is the store asked.
The learner goes on without the store, with 0 for every user.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from contracts.settings import Settings
from feature_store.history import Moment, OfflineReader
from learner.experience import USER_REWARD_MEAN, Experience, known_mean

RewardMeans = Callable[[Sequence[Experience]], list[float | None]]
"""Give each experience's user reward mean as of its decision; None where it was not known."""

_log = logging.getLogger("learner")


def stored_reward_means(settings: Settings) -> RewardMeans:
    """Return a lookup in the offline store, which is opened at the first call (seconds)."""
    opened: list[OfflineReader] = []

    def look_up(experiences: Sequence[Experience]) -> list[float | None]:
        moments = [
            Moment(user_id=e.user_id, session_id=e.session_id, at=e.decided_at) for e in experiences
        ]
        try:
            if not opened:
                opened.append(OfflineReader(settings))
            rows = opened[0].at(moments)
        except Exception as error:  # noqa: BLE001 - edge of the process: Feast raises what it likes, learning goes on
            _log.warning("no user features for this batch: %s", error)
            return [None] * len(experiences)
        return [
            float(value) if (value := row[USER_REWARD_MEAN]) is not None else None for row in rows
        ]

    return look_up


def with_reward_means(
    experiences: Sequence[Experience], reward_means: RewardMeans
) -> list[Experience]:
    """Return the experiences in the order given, with what the gateway did not log looked up.

    Then serving and learning see the same values. Nothing is asked for those that teach nothing.
    """
    unknown = [one for one in experiences if not (one.features_logged or _teaches_nothing(one))]
    if not unknown:
        return list(experiences)
    found = map(known_mean, reward_means(unknown))
    means = dict(zip((e.sample_id for e in unknown), found, strict=True))
    return [
        replace(one, user_reward_mean=means[one.sample_id]) if one.sample_id in means else one
        for one in experiences
    ]


def _teaches_nothing(experience: Experience) -> bool:
    return experience.censored and not experience.imputed
