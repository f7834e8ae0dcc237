"""Reads the served features online, for one request, with their ages.

It knows nothing of the gateway: a read that fails raises `FeatureReadError`, and whoever asks
must be able to answer without features.
"""

from __future__ import annotations

from datetime import datetime

from contracts.errors import HeadraceError
from contracts.events import BASE_VERSION, FeatureValue
from contracts.settings import Settings
from feature_store.views import TABLE, Value, ViewTable, without_stale


class FeatureReadError(HeadraceError, RuntimeError):
    """The online store could not be read; answer without features."""


class OnlineReader:
    """Opening imports Feast and warms the store up (seconds): do it before taking traffic.

    Rows are read at the level of the store itself (`redis_rows`, `sqlite_rows`).
    """

    def __init__(self, settings: Settings, table: ViewTable = TABLE) -> None:
        from feature_store.store import open_store, readable_rows

        self._max_age = settings.gateway.feature_max_age_seconds
        self._window = settings.features.window_seconds
        self._names = {
            view.name: [(f"{view.name}.{feature}", feature) for feature in view.shown]
            for view in table.served
        }
        try:
            self._rows = readable_rows(settings, open_store(settings, table), table.served)
        except Exception as error:  # Feast raises even bare Exception, stores their own
            raise FeatureReadError(f"the feature store does not open: {error}") from error
        self.read("", "", BASE_VERSION, datetime.fromtimestamp(0).astimezone())

    def read(
        self, user_id: str, session_id: str, policy_version: str, now: datetime, topic: str = ""
    ) -> dict[str, FeatureValue]:
        """Return every served feature by name.

        A value is None when the store has none (age None) or it is older than
        ``gateway.feature_max_age_seconds``, or than the window that it is over (its age is given).
        Blocks for about a tenth of a millisecond. Raises FeatureReadError when the store cannot be
        read.
        """
        keys = {
            "user_id": user_id,
            "session_id": session_id,
            "policy_version": policy_version,
            "topic": topic,
        }
        try:
            rows = self._rows.read(keys)
        except Exception as error:  # Feast raises even bare Exception, stores their own
            raise FeatureReadError(f"online features could not be read: {error}") from error
        moment, found = now.timestamp(), {}
        for view, names in self._names.items():
            values, age = self._fresh(rows.get(view), moment)
            for name, feature in names:
                found[name] = FeatureValue(value=values.get(feature), age_seconds=age)
        return found

    def _fresh(
        self, row: tuple[dict[str, Value], int] | None, now: float
    ) -> tuple[dict[str, Value], float | None]:
        """Return a row's values and age; Feast does not apply ttl online."""
        if row is None:
            return {}, None
        age = max(0.0, now - row[1])
        return (
            without_stale(row[0], now, self._window) if age <= self._max_age else {},
            age,
        )
