"""What an online store can do, whichever it is: the rows of views, by key, newest event first.

Two ways lead to the rows. The short one (`redis_rows`, `sqlite_rows`) speaks to the store in
Feast's own layout; `feast_rows` goes through Feast, and serves where the layout is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from feature_store.views import FeatureRow, Value, View

Stored = tuple[dict[str, Value], int]
"""Values by column, and the event time in whole epoch seconds."""

Latest = tuple[dict[str, Value], datetime]
"""Values by column, and the event time as exactly as the store keeps it."""


class ReadableRows(Protocol):
    """Reads the rows that one request needs. Safe for all threads of a process."""

    def read(self, keys: Mapping[str, str]) -> dict[str, Stored]:
        """Return view name to row, for the rows that are there; ``keys`` are by join key."""
        ...


class WritableRows(Protocol):
    """Writes rows and reads them back. One call at a time."""

    def write(self, view: View, rows: Sequence[FeatureRow]) -> int:
        """Write rows of a view in the order of their events; return how many were late.

        A late row is older than what is stored of its key and changes nothing.
        """
        ...

    def latest(self, view: View, keys: Sequence[str]) -> dict[str, Latest]:
        """Return the row of each key that is there."""
        ...

    def prune(self, before: datetime, limit: int) -> int:
        """Remove at most ``limit`` keys per view last written before a moment; return how many.

        0 where the store lets keys expire by itself.
        """
        ...
