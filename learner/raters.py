"""Who told each label: one who told many counts as a few of them, in means and in intervals.

Labels of one person are alike, so an interval over them takes each person for one draw
(linearised variance of a ratio; Wilson's interval on the effective count: Korn & Graubard 1998).
Shape suffixes: n labels, u raters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_Z = 1.959964
"""Of a two-sided interval of 95 %."""


class Proportion(Struct, frozen=True):
    """A share of ``count`` labels with its two-sided 95 % interval (Wilson 1927)."""

    value: float
    lower: float
    upper: float
    count: int


class Raters(Struct, frozen=True):
    """How much each of n labels counts, and the number of who told it."""

    weight_n: Floats
    rater_n: NDArray[np.int64]

    def mean(self, value_n: Floats) -> float:
        """Return the weighted mean of one value per label."""
        return float((self.weight_n * value_n).sum() / self.weight_n.sum())

    def of(self, chosen_n: NDArray[np.bool_]) -> Raters:
        """Return these of the chosen labels alone."""
        return Raters(self.weight_n[chosen_n], self.rater_n[chosen_n])


def raters_of(users: Sequence[str], most: float) -> Raters:
    """Return the raters; one with more than ``most`` labels counts as ``most`` of them."""
    counts = Counter(users)
    numbers = {user: number for number, user in enumerate(counts)}
    return Raters(
        np.array([min(1.0, most / counts[user]) for user in users]),
        np.array([numbers[user] for user in users], dtype=np.int64),
    )


def strangers(count: int) -> Raters:
    """Return raters of whom each told one label."""
    return Raters(np.ones(count), np.arange(count))


def proportion(right_n: Floats, raters: Raters) -> Proportion:
    """Return the share of labels that were right; half counts for what cannot be told apart."""
    share = raters.mean(right_n)
    return _wilson(share, _effective_count(right_n - share, share, raters), len(right_n))


def _effective_count(off_n: Floats, share: float, raters: Raters) -> float:
    """Return how many independent labels would tell the share as well."""
    off_u = np.bincount(raters.rater_n, raters.weight_n * off_n)
    variance = float((off_u**2).sum()) / float(raters.weight_n.sum()) ** 2
    if variance < 1e-12:  # all raters alike: each is one draw
        return float(len(np.unique(raters.rater_n)))
    return min(max(share * (1.0 - share) / variance, 1.0), float(len(off_n)))


def _wilson(share: float, size: float, count: int) -> Proportion:
    middle = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    spread = share * (1 - share) / size + _Z**2 / (4 * size**2)
    half = _Z * math.sqrt(spread) / (1 + _Z**2 / size)
    return Proportion(share, max(middle - half, 0.0), min(middle + half, 1.0), count)
