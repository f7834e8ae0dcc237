"""Reads the served features online, for one request, with their ages.

It knows nothing of the gateway: a read that fails raises `FeatureReadError`, and whoever asks
must be able to answer without features.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from threading import Lock
from typing import Any

from contracts.errors import HeadraceError
from contracts.events import BASE_VERSION, FeatureValue
from contracts.settings import Settings
from feature_store.views import SERVED, Value


class FeatureReadError(HeadraceError, RuntimeError):
    """The online store could not be read; answer without features."""


class OnlineReader:
    """Opening imports Feast and warms the store up (seconds): do it before taking traffic.

    sqlite is read at its own level (`feature_store.sqlite_rows`), Redis through Feast.
    """

    def __init__(self, settings: Settings) -> None:
        from feature_store.store import online_rows, open_store, service_of

        self._max_age = settings.gateway.feature_max_age_seconds
        self._lock = Lock()  # one connection serves all threads of the process
        self._names = {
            view.name: [(f"{view.name}.{feature}", feature) for feature in view.features]
            for view in SERVED
        }
        try:
            self._store: Any = open_store(settings)
            self._service = service_of(self._store)
            self._rows = online_rows(settings, self._store, SERVED)
        except Exception as error:  # Feast raises even bare Exception, stores their own
            raise FeatureReadError(f"the feature store does not open: {error}") from error
        self.read("", "", BASE_VERSION, datetime.fromtimestamp(0).astimezone())

    def read(
        self, user_id: str, session_id: str, policy_version: str, now: datetime
    ) -> dict[str, FeatureValue]:
        """Return every served feature by name.

        A value is None when the store has none (age None) or it is older than
        ``gateway.feature_max_age_seconds`` (its age is given). Blocks for about a millisecond on
        Redis, a tenth of that on sqlite. Raises FeatureReadError when the store cannot be read.
        """
        keys = {"user_id": user_id, "session_id": session_id, "policy_version": policy_version}
        try:
            rows = self._rows.read(keys) if self._rows else self.read_through_feast(keys)
        except Exception as error:  # Feast raises even bare Exception, stores their own
            raise FeatureReadError(f"online features could not be read: {error}") from error
        moment, found = now.timestamp(), {}
        for view in SERVED:
            values, age = self._fresh(rows.get(view.name), moment)
            for name, feature in self._names[view.name]:
                found[name] = FeatureValue(value=values.get(feature), age_seconds=age)
        return found

    def read_through_feast(
        self, keys: Mapping[str, str]
    ) -> dict[str, tuple[dict[str, Value], int]]:
        """Return view name to (values, event time in epoch seconds), as Feast's public read says.

        Its status cannot tell missing from null on Redis; a row without a time is missing.
        """
        with self._lock:
            response = self._store.get_online_features(
                features=self._service, entity_rows=[dict(keys)], full_feature_names=True
            )
            columns = response.to_dict(include_event_timestamps=True)
        found: dict[str, tuple[dict[str, Value], int]] = {}
        for view in SERVED:
            for feature in view.features:
                column = f"{view.name}__{feature}"
                if seconds := columns[f"{column}__ts"][0]:
                    found.setdefault(view.name, ({}, seconds))[0][feature] = columns[column][0]
        return found

    def _fresh(
        self, row: tuple[dict[str, Value], int] | None, now: float
    ) -> tuple[dict[str, Value], float | None]:
        """Return a row's values and age; Feast does not apply ttl online."""
        if row is None:
            return {}, None
        age = max(0.0, now - row[1])
        return row[0] if age <= self._max_age else {}, age
