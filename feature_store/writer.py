"""Writes feature rows in batches: newest row per key online, every row offline.

Nothing here is asynchronous: call it from a worker thread, one call at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from contracts.clock import Clock
from contracts.settings import Settings
from feature_store.parts import PartFolder
from feature_store.rows import Latest, WritableRows
from feature_store.turn import turn
from feature_store.views import TABLE, FeatureRow, View, ViewTable, kept_online_seconds

PRUNE_SECONDS = 60.0
PRUNE_LIMIT = 1000
"""Keys per view that one write removes at most: a write stays short."""


class FeatureWriter:
    """The one writer of a process; ``name`` sets its parts apart from other writers'.

    Once a minute a write removes what has expired: keys not written for
    `kept_online_seconds`, parts older than ``features.retention_days``.
    """

    def __init__(
        self, settings: Settings, clock: Clock, name: str = "writer", table: ViewTable = TABLE
    ) -> None:
        from feature_store.store import offline_folder, open_store, repository, writable_rows

        store: Any = open_store(settings, table)
        self._views, self._served = table.views, {view.name for view in table.served}
        self._rows: WritableRows = writable_rows(settings, store, clock, table.online)
        writer = f"{name}-{os.getpid()}"
        self._parts = {
            view.name: PartFolder(offline_folder(settings, view.name), view, writer)
            for view in table.views.values()
        }
        self._turn = repository(settings) / "turn.lock"
        self._clock, self._pruned = clock, clock.now()
        self._online_age = timedelta(seconds=kept_online_seconds(settings))
        self._offline_age = timedelta(days=settings.features.retention_days)

    def alone(self) -> AbstractContextManager[None]:
        """Keep other writers of this ``state_dir`` from reading rows in order to write them."""
        return turn(self._turn)

    def write(self, rows: Sequence[FeatureRow]) -> int:
        """Write rows online, if their view is, and offline; return how many were older than online.

        Such late rows go to the offline store alone, where the join orders them by time.
        """
        late, now = 0, self._clock.now()
        for view in {row.view: None for row in rows}:
            of_view = [row for row in rows if row.view == view]
            whole = self._whole(self._views[view], of_view) if view in self._served else of_view
            if self._views[view].online:
                late += self._rows.write(self._views[view], of_view)
            self._parts[view].write(whole, created=now)
        if now - self._pruned >= timedelta(seconds=PRUNE_SECONDS):
            self._pruned = now
            self.prune(now - self._online_age, PRUNE_LIMIT)
            for parts in self._parts.values():
                parts.remove_before(now - self._offline_age)
        return late

    def latest(self, view: str, keys: Sequence[str]) -> dict[str, Latest]:
        """Return the online values and event time of each key that is there.

        ValueError for a view that is not online.
        """
        if not self._views[view].online:
            raise ValueError(f"view {view} is kept offline only; read it by Feast's offline join")
        return self._rows.latest(self._views[view], keys)

    def prune(self, before: datetime, limit: int) -> int:
        """Remove from sqlite at most ``limit`` keys per view that were last written before a
        moment, oldest first; return how many. Redis lets keys expire by itself."""
        return self._rows.prune(before, limit)

    def _whole(self, view: View, rows: Sequence[FeatureRow]) -> list[FeatureRow]:
        """Fill the columns that rows lack with what holds online, so that a past moment knows of
        them what the gateway knew. A late row is left as it is: what held then is not online."""
        partial = {row.key: None for row in rows if len(row.values) < len(view.columns)}
        if not partial:
            return list(rows)
        known = self._rows.latest(view, list(partial))
        found = []
        for row in sorted(rows, key=lambda row: row.event_time):
            values, moment = known.get(row.key, ({}, row.event_time))
            if row.event_time >= moment:
                values = {**values, **row.values}
                known[row.key] = values, row.event_time
                found.append(replace(row, values=values))
            else:
                found.append(row)
        return found
