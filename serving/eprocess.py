"""The conditional-share e-process: an anytime-valid test that a canary violates more often.

Each violation is one event; under "the canary is no worse" it comes from the canary with at most
the probability ``w`` that its user was assigned there, whatever the base rate is and however it
drifts. For an odds ratio ``o`` the event's factor is ``o^x / (o*w + 1 - w)`` with x = 1 for the
canary; E is the mean over a grid of odds ratios of the products, and by Ville's inequality it ever
reaches ``1/alpha`` with probability at most ``alpha``, looked at as often as one likes.

Source: conditioning on the event as in M. Lindon and A. Malek, "Anytime-valid inference for
multinomial count data" (NeurIPS 2022, arXiv 2011.03567); a mixture over simple alternatives.
It does not know whose event it is: one event per user is the caller's duty.
"""

from __future__ import annotations

import math
import sys

ODDS_RATIOS: tuple[float, ...] = tuple(1.5 * (16 / 1.5) ** (j / 11) for j in range(12))
"""How many times worse the canary may be: twelve values, geometric from 1.5 to 16."""

NO_EVENTS: tuple[float, ...] = (0.0,) * len(ODDS_RATIOS)
"""The running logs before the first event; E is 1."""

_GRID = 2.0**32


def add_event(log_wealth: tuple[float, ...], *, canary: bool, weight: float) -> tuple[float, ...]:
    """Return the running logs after one more violation.

    ``weight`` is the canary's share in force when the event's user was assigned. Each increment is
    rounded down to a multiple of 2^-32, which can only lower E: the guarantee stays, and sums of
    such multiples are exact, so any order of the same events gives the same bytes. Raises
    ValueError for a weight outside [0, 1].
    """
    return add_events(
        log_wealth or NO_EVENTS,
        ODDS_RATIOS,
        canary=int(canary),
        stable=int(not canary),
        weight=weight,
    )


def add_events(
    log_wealth: tuple[float, ...],
    odds_ratios: tuple[float, ...],
    *,
    canary: int,
    stable: int,
    weight: float,
) -> tuple[float, ...]:
    """Return the running logs, one for each of ``odds_ratios``, after events of equal weight.

    ``canary`` and ``stable`` count the events of each arm. Sums stay exact while no log exceeds
    two million. Raises ValueError for a weight outside [0, 1] and for negative counts.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"canary weight {weight}: give the share of users, from 0 to 1")
    if canary < 0 or stable < 0:
        raise ValueError(f"{canary} canary and {stable} stable events: give counts from 0")
    return tuple(
        running
        + canary * _increment(ratio, canary=True, weight=weight)
        + stable * _increment(ratio, canary=False, weight=weight)
        for running, ratio in zip(log_wealth, odds_ratios, strict=True)
    )


def e_value(log_wealth: tuple[float, ...]) -> float:
    """Return E, the mean over the odds ratios of exp(running log).

    Where E would overflow it is the largest float, because JSON has no infinity.
    """
    logs = log_wealth or NO_EVENTS
    top = max(logs)
    mean = math.fsum(math.exp(running - top) for running in logs) / len(logs)
    try:
        return math.exp(top + math.log(mean))
    except OverflowError:
        return sys.float_info.max


def e_value_against(log_wealth: tuple[float, ...], *, times: float) -> float:
    """Return E of the opposite test: evidence that the canary is not ``times`` as bad or worse.

    A canary whose odds of a violation are ``times`` those of the stable version, or more, brings
    this to ``1/beta`` with probability at most ``beta``, over all looks. It is the inverse of one
    of the products that `add_event` keeps, for the largest odds ratio of the grid that is not
    above ``times``; fix ``times`` before the rollout. Rounding adds at most 2^-32 an event to its
    logarithm. Raises ValueError for ``times`` below the grid.
    """
    fitting = [j for j, ratio in enumerate(ODDS_RATIOS) if ratio <= times]
    if not fitting:
        raise ValueError(f"{times} times as bad: give at least {ODDS_RATIOS[0]:g}")
    against = -(log_wealth or NO_EVENTS)[fitting[-1]]
    return math.exp(min(against, math.log(sys.float_info.max)))


def _increment(ratio: float, *, canary: bool, weight: float) -> float:
    exact = (math.log(ratio) if canary else 0.0) - math.log(ratio * weight + 1.0 - weight)
    return math.floor(exact * _GRID) / _GRID
