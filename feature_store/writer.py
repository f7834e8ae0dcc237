"""Writes feature rows in batches: newest row per key online, every row offline.

Nothing here is asynchronous: call it from a worker thread, one call at a time.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from contracts.clock import Clock
from contracts.settings import Settings
from feature_store.parts import MERGE_AFTER, merge_parts, write_part
from feature_store.views import VIEWS, FeatureRow, Value

MAX_BATCH = 1000
"""Rows per online transaction: longer ones keep other sqlite writers waiting past their limit."""

MAX_REMEMBERED = 200_000

SIMULTANEOUS = timedelta(milliseconds=10)
"""Events of one key closer than this count as simultaneous: the one written last holds.

For keys not written by this process yet it is a second on sqlite, which keeps whole seconds.
"""

_TICK = timedelta(microseconds=1)


class FeatureWriter:
    """The one writer of a process; ``name`` sets its parts apart from other writers'."""

    def __init__(self, settings: Settings, clock: Clock, name: str = "writer") -> None:
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value as ValueProto

        from feature_store.store import offline_folder, open_store

        self._proto, self._entity_key = ValueProto, EntityKey
        self._store: Any = open_store(settings)
        self._views = {name: self._store.get_feature_view(name) for name in VIEWS}
        self._folders = {name: offline_folder(settings, name) for name in VIEWS}
        self._parts: dict[str, list[Path]] = {name: [] for name in VIEWS}
        self._newest: OrderedDict[tuple[str, str], datetime] = OrderedDict()
        self._clock, self._name, self._count = clock, f"{name}-{os.getpid()}", 0

    def write(self, rows: Sequence[FeatureRow]) -> int:
        """Write rows online and offline; return how many were older than what is online.

        Such late rows go to the offline store alone, where the join orders them by time.
        """
        late = 0
        for view in {row.view: None for row in rows}:
            of_view = [row for row in rows if row.view == view]
            late += self._write_online(view, of_view)
            self._write_offline(view, of_view)
        return late

    def latest(
        self, view: str, keys: Sequence[str]
    ) -> dict[str, tuple[dict[str, Value], datetime]]:
        """Return the online values and event time of each key that is there."""
        if not keys:
            return {}
        found = self._store.provider.online_read(
            self._store.config, self._views[view], [self._key(view, key) for key in keys]
        )
        return {
            key: ({name: _plain(value) for name, value in values.items()}, moment)
            for key, (moment, values) in zip(keys, found, strict=True)
            if moment is not None and values is not None
        }

    def _write_online(self, view: str, rows: Sequence[FeatureRow]) -> int:
        self._learn_newest(view, {row.key for row in rows})
        late = 0
        fresh: dict[str, tuple[dict[str, Value], datetime]] = {}
        for row in sorted(rows, key=lambda row: row.event_time):
            newest = self._newest.get((view, row.key))
            if newest is not None and row.event_time < newest - SIMULTANEOUS:
                late += 1
                continue
            # Redis drops a write with a time it has seen, so equal times move on by a tick.
            moment = row.event_time if newest is None else max(row.event_time, newest + _TICK)
            self._remember(view, row.key, moment)
            values = fresh.get(row.key, ({}, moment))[0]
            fresh[row.key] = ({**values, **row.values}, moment)
        batch = [
            (self._key(view, key), self._protos(view, values), moment, None)
            for key, (values, moment) in fresh.items()
        ]
        for start in range(0, len(batch), MAX_BATCH):
            self._store.provider.online_write_batch(
                self._store.config, self._views[view], batch[start : start + MAX_BATCH], None
            )
        return late

    def _write_offline(self, view: str, rows: Sequence[FeatureRow]) -> None:
        folder, created = self._folders[view], self._clock.now()
        parts = self._parts[view]
        parts.append(write_part(folder, VIEWS[view], rows, created, self._part_name(created)))
        if len(parts) >= MERGE_AFTER:
            merged = folder / f"{self._part_name(created)}-merged.parquet"
            merge_parts(parts, merged)
            parts.clear()

    def _part_name(self, created: datetime) -> str:
        self._count += 1
        return f"{created:%Y%m%dT%H%M%S}-{self._name}-{self._count:06d}"

    def _learn_newest(self, view: str, keys: set[str]) -> None:
        unknown = [key for key in keys if (view, key) not in self._newest]
        for start in range(0, len(unknown), MAX_BATCH // 2):
            for key, (_, moment) in self.latest(
                view, unknown[start : start + MAX_BATCH // 2]
            ).items():
                self._remember(view, key, moment)

    def _remember(self, view: str, key: str, moment: datetime) -> None:
        self._newest[view, key] = moment
        self._newest.move_to_end((view, key))
        while len(self._newest) > MAX_REMEMBERED:
            self._newest.popitem(last=False)

    def _key(self, view: str, key: str) -> Any:
        return self._entity_key(
            join_keys=[VIEWS[view].join_key], entity_values=[self._proto(string_val=key)]
        )

    def _protos(self, view: str, values: dict[str, Value]) -> dict[str, Any]:
        # Nothing below checks the proto type, so it is chosen by the declared type alone.
        columns = VIEWS[view].columns
        return {name: self._proto_of(columns[name], value) for name, value in values.items()}

    def _proto_of(self, kind: type, value: Value) -> Any:
        if value is None:
            return self._proto()
        if kind is int:
            return self._proto(int64_val=int(value))
        if kind is float:
            return self._proto(double_val=float(value))
        return self._proto(string_val=str(value))


def _plain(value: Any) -> Value:
    field = value.WhichOneof("val")
    found: Value = getattr(value, field) if field else None
    return found
