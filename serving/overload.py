"""Refusing early what could not be answered in time: how long an answer takes, by how many wait.

A straight line through what was measured of late, seconds against requests under way: its slope is
what each further request costs the others. It needs no knowledge of how an engine batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from serving.budget import Budget
from serving.wire_errors import Refusal

DECAY = 0.95
"""Weight of an observation against the one after it: about the latest twenty count."""
ENOUGH = 5.0
"""Observations' weight below which nothing is foretold."""
REACH = 8.0
"""How far beyond the most requests seen at once the line is believed."""
FIRST_SHARE = 0.4
"""Share of a budget that the first answer is foretold to fit in: it has half of the budget, and
what is foretold may be off."""
LONGEST_RETRY_SECONDS = 60


class Line:
    """Least squares with decaying weights: seconds as a straight line over requests under way."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._most = 0.0

    def add(self, under_way: int, seconds: float) -> None:
        """Take an observation."""
        x, y = float(under_way), seconds
        self._weight = DECAY * self._weight + 1.0
        self._x = DECAY * self._x + x
        self._y = DECAY * self._y + y
        self._xx = DECAY * self._xx + x * x
        self._xy = DECAY * self._xy + x * y
        self._most = max(DECAY * self._most, x)

    def at(self, under_way: int) -> float:
        """Return the seconds expected with so many under way, 0 while too little is known."""
        if self._weight < ENOUGH:
            return 0.0
        x = min(float(under_way), REACH * self._most)
        spread = self._weight * self._xx - self._x * self._x
        slope = 0.0
        if spread > 1e-9 * self._weight * self._xx:  # else all had as many beside them
            slope = max((self._weight * self._xy - self._x * self._y) / spread, 0.0)
        return max((self._y + slope * (self._weight * x - self._x)) / self._weight, 0.0)


class Load:
    """The requests that are with the engine, and what their answers took; for one event loop.

    Streams count until their first text and have a line of their own.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self.refused = 0
        self._lines = {False: Line(), True: Line()}

    @contextmanager
    def asking(self, budget: Budget, *, stream: bool) -> Iterator[int]:
        """Hold a place among those under way and give their number, this request among them.

        Raises Refusal 429 when an answer is not to be expected within `FIRST_SHARE` of the budget
        because of those before it. With none before it a request is always let through.
        """
        expected, alone = self.expected(stream=stream), self._lines[stream].at(1)
        if self.under_way and expected > alone and expected > FIRST_SHARE * budget.seconds:
            self.refused += 1
            raise _overloaded(self.under_way, expected, budget)
        self.under_way += 1
        try:
            yield self.under_way
        finally:
            self.under_way -= 1

    def expected(self, *, stream: bool) -> float:
        """Return the seconds that one more request would take."""
        return self._lines[stream].at(self.under_way + 1)

    def took(self, under_way: int, seconds: float, *, stream: bool, ended: bool = True) -> None:
        """Note what an answer took that found so many under way, itself among them.

        One that had not ``ended`` would have taken longer: it counts only where it took longer than
        expected already. Else requests with little time would make a slow engine look fast.
        """
        line = self._lines[stream]
        if ended or seconds > line.at(under_way):
            line.add(under_way, seconds)


def _overloaded(under_way: int, expected: float, budget: Budget) -> Refusal:
    over = expected - FIRST_SHARE * budget.seconds
    return Refusal(
        429,
        f"{under_way} requests are under way and an answer would take {expected:.3g} s, of the "
        f"{budget.seconds:.3g} s it may take; try again later",
        code="overloaded",
        retry_after=min(max(math.ceil(over), 1), LONGEST_RETRY_SECONDS),
    )
