"""Time as an input: every process takes a `Clock`, so that tests can turn it by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the code may ask about time."""

    def now(self) -> datetime:
        """Return the present moment, timezone-aware in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the present moment in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        """Return the moment last set."""
        return self._now

    def monotonic(self) -> float:
        """Return seconds advanced so far."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both clocks forward; going back raises ValueError."""
        if seconds < 0:
            raise ValueError(f"cannot go back in time by {-seconds} s; give seconds >= 0")
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
