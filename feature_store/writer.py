"""Writes feature rows in batches: newest row per key online, every row offline.

Nothing here is asynchronous: call it from a worker thread, one call at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from contracts.clock import Clock
from contracts.settings import Settings
from feature_store.parts import PartFolder
from feature_store.rows import Latest, WritableRows
from feature_store.views import VIEWS, FeatureRow

PRUNE_SECONDS = 60.0
PRUNE_LIMIT = 1000
"""Keys per view that one write removes at most: a write stays short."""


class FeatureWriter:
    """The one writer of a process; ``name`` sets its parts apart from other writers'.

    Once a minute a write removes what has expired: keys not written for
    ``gateway.feature_max_age_seconds``, parts older than ``features.retention_days``.
    """

    def __init__(self, settings: Settings, clock: Clock, name: str = "writer") -> None:
        from feature_store.store import offline_folder, open_store, writable_rows

        store: Any = open_store(settings)
        self._rows: WritableRows = writable_rows(settings, store, clock)
        writer = f"{name}-{os.getpid()}"
        self._parts = {
            view.name: PartFolder(offline_folder(settings, view.name), view, writer)
            for view in VIEWS.values()
        }
        self._clock, self._pruned = clock, clock.now()
        self._online_age = timedelta(seconds=settings.gateway.feature_max_age_seconds)
        self._offline_age = timedelta(days=settings.features.retention_days)

    def write(self, rows: Sequence[FeatureRow]) -> int:
        """Write rows online and offline; return how many were older than what is online.

        Such late rows go to the offline store alone, where the join orders them by time.
        """
        late, now = 0, self._clock.now()
        for view in {row.view: None for row in rows}:
            of_view = [row for row in rows if row.view == view]
            late += self._rows.write(VIEWS[view], of_view)
            self._parts[view].write(of_view, created=now)
        if now - self._pruned >= timedelta(seconds=PRUNE_SECONDS):
            self._pruned = now
            self.prune(now - self._online_age, PRUNE_LIMIT)
            for parts in self._parts.values():
                parts.remove_before(now - self._offline_age)
        return late

    def latest(self, view: str, keys: Sequence[str]) -> dict[str, Latest]:
        """Return the online values and event time of each key that is there."""
        return self._rows.latest(VIEWS[view], keys)

    def prune(self, before: datetime, limit: int) -> int:
        """Remove from sqlite at most ``limit`` keys per view that were last written before a
        moment, oldest first; return how many. Redis lets keys expire by itself."""
        return self._rows.prune(before, limit)
