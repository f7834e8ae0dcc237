"""Reads the served features as they were known at past moments: point-in-time joins.

A value counts at a moment only when its event had happened and its row had been written by then,
so that nothing learned later leaks into a training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from contracts.errors import UnavailableError
from contracts.events import BASE_VERSION
from contracts.settings import Settings
from feature_store.views import TABLE, Value, View, ViewTable, without_stale


class Moment(Struct, frozen=True, kw_only=True):
    """Whose features to look up, and as of when."""

    user_id: str
    session_id: str
    policy_version: str = BASE_VERSION
    topic: str = ""
    at: datetime


class OfflineReader:
    """Opening imports Feast (seconds)."""

    def __init__(self, settings: Settings, table: ViewTable = TABLE) -> None:
        from feature_store.store import offline_folder, open_store, service_of

        self._served = table.served
        self._window = settings.features.window_seconds
        self._store: Any = open_store(settings, table)
        self._service = service_of(self._store)
        self._folders = [offline_folder(settings, view.name) for view in self._served]

    def at(self, moments: Sequence[Moment]) -> list[dict[str, Value]]:
        """Return the served features by name for each moment, in order; None where none was known.

        Raises UnavailableError when the parts cannot be read, or are merged for too long.
        """
        if not moments:
            return []
        import pandas as pd

        entities = pd.DataFrame(
            {
                "row": range(len(moments)),
                "user_id": [moment.user_id for moment in moments],
                "session_id": [moment.session_id for moment in moments],
                "policy_version": [moment.policy_version for moment in moments],
                "topic": [moment.topic for moment in moments],
                "event_timestamp": [moment.at for moment in moments],
            }
        )
        frame = self._join(entities).set_index("row")
        rows: list[dict[str, Any]] = frame.reindex(range(len(moments))).to_dict("records")
        return [
            {
                f"{view.name}.{feature}": value
                for view in self._served
                for feature, value in self._values(view, row, moment.at.timestamp()).items()
            }
            for row, moment in zip(rows, moments, strict=True)
        ]

    def _values(self, view: View, row: dict[str, Any], at: float) -> dict[str, Value]:
        found = {
            feature: _plain(kind, row[f"{view.name}__{feature}"])
            for feature, kind in view.features.items()
        }
        fresh = without_stale(found, at, self._window)
        return {feature: fresh[feature] for feature in view.shown}

    def _join(self, entities: Any) -> Any:
        import duckdb

        from feature_store.parts import unchanged_parts

        try:
            with unchanged_parts(self._folders):
                return self._store.get_historical_features(
                    entity_df=entities,
                    features=self._service,
                    full_feature_names=True,
                    filter_by_created_timestamp=True,
                ).to_df()
        except (OSError, duckdb.Error) as error:
            raise UnavailableError(
                f"offline features: parts could not be read ({error}); "
                "is the state directory complete?"
            ) from error


def _plain(kind: type, value: Any) -> Value:
    """Undo what pandas does to columns with gaps: integers become floats, None becomes NaN."""
    if value is None or value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return None
    plain: Value = kind(value)
    return plain
