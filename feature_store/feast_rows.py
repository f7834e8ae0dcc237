"""Reads and writes rows through Feast: the reference of the short ways, and the way without them.

Feast's stores differ on late events, so the order is kept here, per process: an event is late when
it is older than what this process has written, or found stored when it first saw the key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

from feature_store.rows import Latest, Stored
from feature_store.views import FeatureRow, Value, View

MAX_BATCH = 1000
"""Rows per online transaction: longer ones keep other sqlite writers waiting past their limit."""

MAX_REMEMBERED = 200_000

SIMULTANEOUS = timedelta(milliseconds=10)
"""Events of one key closer than this count as simultaneous: the one written last holds.

For keys not written by this process yet it is a second on sqlite, which keeps whole seconds.
"""

_TICK = timedelta(microseconds=1)


class FeastRows:
    """The rows of ``views`` in an opened store. ``service`` is fetched once per process."""

    def __init__(self, store: Any, service: Any, views: Iterable[View]) -> None:
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value as ValueProto

        self._proto, self._entity_key = ValueProto, EntityKey
        self._store, self._service = store, service
        self._views = {view.name: view for view in views}
        self._feast_views = {name: store.get_feature_view(name) for name in self._views}
        self._lock = Lock()  # one connection serves all threads of the process
        self._newest: OrderedDict[tuple[str, str], datetime] = OrderedDict()

    def read(self, keys: Mapping[str, str]) -> dict[str, Stored]:
        """Return view name to (values, event time in epoch seconds), as Feast's public read says.

        Its status cannot tell missing from null on Redis; a row without a time is missing.
        """
        with self._lock:
            response = self._store.get_online_features(
                features=self._service, entity_rows=[dict(keys)], full_feature_names=True
            )
            columns = response.to_dict(include_event_timestamps=True)
        found: dict[str, Stored] = {}
        for view in self._views.values():
            for feature in view.features:
                column = f"{view.name}__{feature}"
                if seconds := columns[f"{column}__ts"][0]:
                    found.setdefault(view.name, ({}, seconds))[0][feature] = columns[column][0]
        return found

    def latest(self, view: View, keys: Sequence[str]) -> dict[str, Latest]:
        """Return the row of each key that is there."""
        if not keys:
            return {}
        with self._lock:
            found = self._store.provider.online_read(
                self._store.config,
                self._feast_views[view.name],
                [self._key(view, key) for key in keys],
            )
        return {
            key: ({name: _plain(value) for name, value in values.items()}, moment)
            for key, (moment, values) in zip(keys, found, strict=True)
            if moment is not None and moment.timestamp() and values is not None
        }

    def write(self, view: View, rows: Sequence[FeatureRow]) -> int:
        """Write rows of a view in the order of their events; return how many were late."""
        self._learn_newest(view, {row.key for row in rows})
        late = 0
        fresh: dict[str, Latest] = {}
        for row in sorted(rows, key=lambda row: row.event_time):
            newest = self._newest.get((view.name, row.key))
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
            part = batch[start : start + MAX_BATCH]
            with self._lock:
                self._store.provider.online_write_batch(
                    self._store.config, self._feast_views[view.name], part, None
                )
        return late

    def prune(self, before: datetime, limit: int) -> int:
        """Return 0: Feast removes single keys from no store; Redis expires them by itself."""
        return 0

    def _learn_newest(self, view: View, keys: set[str]) -> None:
        unknown = [key for key in keys if (view.name, key) not in self._newest]
        for start in range(0, len(unknown), MAX_BATCH // 2):
            part = unknown[start : start + MAX_BATCH // 2]
            for key, (_, moment) in self.latest(view, part).items():
                self._remember(view, key, moment)

    def _remember(self, view: View, key: str, moment: datetime) -> None:
        self._newest[view.name, key] = moment
        self._newest.move_to_end((view.name, key))
        while len(self._newest) > MAX_REMEMBERED:
            self._newest.popitem(last=False)

    def _key(self, view: View, key: str) -> Any:
        return self._entity_key(
            join_keys=[view.join_key], entity_values=[self._proto(string_val=key)]
        )

    def _protos(self, view: View, values: Mapping[str, Value]) -> dict[str, Any]:
        # Nothing below checks the proto type, so it is chosen by the declared type alone.
        columns = view.columns
        return {name: self._proto_of(columns[name], value) for name, value in values.items()}

    def _proto_of(self, kind: type, value: Value) -> Any:
        if value is None or value != value:  # noqa: PLR0124 - NaN alone differs from itself
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
