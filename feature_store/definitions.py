"""The Feast objects of the view table: entities, sources, feature views and the feature service."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

from contracts.settings import Settings
from feature_store.views import View, ViewTable

SERVICE = "served"

_TYPES: dict[type, Any] = {int: Int64, float: Float64, str: String}


def definitions(settings: Settings, folder: Path, table: ViewTable) -> Iterator[Any]:
    """Yield every object to apply. The ttl of the offline join is the gateway's maximum age, so
    that a value is missing for the learner exactly when it was for the gateway."""
    ttl = timedelta(seconds=settings.gateway.feature_max_age_seconds)
    entities = {name: _entity(view) for name, view in table.views.items()}
    views = {name: _view(of, entities[name], folder, ttl) for name, of in table.views.items()}
    yield from entities.values()
    yield from views.values()
    yield FeatureService(
        name=SERVICE,
        features=[views[view.name][list(view.features)] for view in table.served],
    )


def _entity(view: View) -> Any:
    return Entity(name=view.name, join_keys=[view.join_key], value_type=ValueType.STRING)


def _view(view: View, entity: Any, folder: Path, ttl: timedelta) -> Any:
    source = FileSource(
        name=f"{view.name}_parts",
        path=str(folder / "offline" / view.name / "*.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    return FeatureView(
        name=view.name,
        description=view.description,
        entities=[entity],
        ttl=ttl,
        schema=[Field(name=name, dtype=_TYPES[kind]) for name, kind in view.columns.items()],
        source=source,
        online=view.online,
    )
