"""The tripwire: severe findings that fall on the candidate more than its share of users explains.

A plain function of counts. It is a stop for the few worst events, long before a test can speak; the
tests are in `serving.eprocess`.
"""

from __future__ import annotations

from math import exp, lgamma, log, log1p

CHANCE = 0.001
"""So unlikely it must be that findings which hit both versions alike fall as they did."""


def trips(candidate: int, stable: int, share: float, least: int) -> bool:
    """Tell whether users with a severe finding speak against the candidate.

    ``candidate`` and ``stable`` are users, each counted once; ``share`` is the candidate's share of
    users, between 0 and 1; fewer than ``least`` candidate users never trip.
    """
    if candidate < max(least, 1):
        return False
    return upper_tail(candidate, candidate + stable, share) <= CHANCE * (1.0 + 1e-9)


def upper_tail(least: int, trials: int, share: float) -> float:
    """Return P(X >= ``least``) of a binomial X with ``trials`` and probability ``share``.

    Summed from the smallest exponent on in logarithms, so large counts neither overflow nor vanish.
    """
    if least <= 0 or share >= 1.0:
        return 1.0
    if share <= 0.0 or least > trials:
        return 0.0
    total = 0.0
    for count in range(least, trials + 1):
        ways = lgamma(trials + 1) - lgamma(count + 1) - lgamma(trials - count + 1)
        term = exp(ways + count * log(share) + (trials - count) * log1p(-share))
        total += term
        if count > trials * share and term < total * 1e-17:
            break
    return min(total, 1.0)
