"""Reads the served features online, for one request, with their ages.

It knows nothing of the gateway: a read that fails raises `FeatureReadError`, and whoever asks
must be able to answer without features.
"""

from __future__ import annotations

from datetime import datetime
from threading import Lock
from typing import Any

from contracts.errors import HeadraceError
from contracts.events import BASE_VERSION, FeatureValue
from contracts.settings import Settings
from feature_store.views import SERVED


class FeatureReadError(HeadraceError, RuntimeError):
    """The online store could not be read; answer without features."""


class OnlineReader:
    """Opening imports Feast and warms the store up (seconds): do it before taking traffic."""

    def __init__(self, settings: Settings) -> None:
        from feature_store.store import open_store, service_of

        self._max_age = settings.gateway.feature_max_age_seconds
        self._lock = Lock()  # one sqlite connection serves all threads of the process
        try:
            self._store: Any = open_store(settings)
            self._service = service_of(self._store)
        except Exception as error:  # Feast raises even bare Exception, stores their own
            raise FeatureReadError(f"the feature store does not open: {error}") from error
        self.read("", "", BASE_VERSION, datetime.fromtimestamp(0).astimezone())

    def read(
        self, user_id: str, session_id: str, policy_version: str, now: datetime
    ) -> dict[str, FeatureValue]:
        """Return every served feature by name.

        A value is None when the store has none (age None) or it is older than
        ``gateway.feature_max_age_seconds`` (its age is given). Blocks for about a millisecond.
        Raises FeatureReadError when the store cannot be read.
        """
        keys = {"user_id": user_id, "session_id": session_id, "policy_version": policy_version}
        try:
            with self._lock:
                response = self._store.get_online_features(
                    features=self._service, entity_rows=[keys], full_feature_names=True
                )
                columns = response.to_dict(include_event_timestamps=True)
        except Exception as error:  # Feast raises even bare Exception, stores their own
            raise FeatureReadError(f"online features could not be read: {error}") from error
        return {
            f"{view.name}.{feature}": self._value(columns, f"{view.name}__{feature}", now)
            for view in SERVED
            for feature in view.features
        }

    def _value(self, columns: dict[str, list[Any]], name: str, now: datetime) -> FeatureValue:
        # Feast does not apply ttl online, and its status cannot tell missing from null on Redis.
        seconds = columns[f"{name}__ts"][0]
        if not seconds:
            return FeatureValue(value=None)
        age = max(0.0, now.timestamp() - seconds)
        return FeatureValue(
            value=columns[name][0] if age <= self._max_age else None, age_seconds=age
        )
