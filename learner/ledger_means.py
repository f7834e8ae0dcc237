"""The users' means that versions were learned with, as their ledgers have them, for a replay.

The feature store may say otherwise by then: rows came in, and others were removed.
"""

from __future__ import annotations

from collections.abc import Sequence

from learner.experience import Experience
from learner.ledger import NO_REWARD, UNTAUGHT, Outcome
from learner.user_features import RewardMeans
from learner.version_line import Link


class LedgerMeans:
    """The users' means that the first run learned with, from its ledgers; others are looked up.

    ``same_batches``: it is asked for the same ones as the first run.
    """

    def __init__(
        self, part: Sequence[Link], otherwise: RewardMeans, *, same_batches: bool = True
    ) -> None:
        self.looked_up = 0
        self._otherwise = otherwise
        self._by_sample: dict[str, float | None] = {}
        self._by_decision: dict[str, float | None] = {}
        for line in (line for link in part for line in link.ledger()):
            if _may_have_been_looked_up(line, same_batches):
                self._by_sample[line.sample_id] = line.user_reward_mean
                self._by_decision[line.decision_id] = line.user_reward_mean

    def __call__(self, experiences: Sequence[Experience]) -> list[float | None]:
        """Return the means as `learner.user_features.RewardMeans` does."""
        return [self._mean(experience) for experience in experiences]

    def _mean(self, experience: Experience) -> float | None:
        if experience.sample_id in self._by_sample:
            return self._by_sample[experience.sample_id]
        if experience.decision_id in self._by_decision:
            return self._by_decision[experience.decision_id]
        self.looked_up += 1
        return self._otherwise([experience])[0]


def _may_have_been_looked_up(line: Outcome, same_batches: bool) -> bool:
    """Tell whether the first run may have asked for the user's mean that a line has, or has not.

    It asked for some of the silent ones that it could have priced or whose reward a model imputed,
    also where they taught nothing. Where a line of these has no mean, either none was known or it
    was not asked for; the same batches ask for no other.
    """
    if line.outcome == NO_REWARD:
        asked = line.violation or bool(line.reward_model)
        return asked and (same_batches or line.user_reward_mean is not None)
    return line.outcome not in UNTAUGHT
