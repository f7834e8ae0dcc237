"""Reads rows of Feast's sqlite online store by the statements Feast itself runs, and no more.

Feast's public read spends most of its time around them. Keys and values are stored in
Feast's own encodings; `tests/feature_store` holds both reads equal, and Feast's version is pinned.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Any

from feature_store.encoding import decode, entity_key, key_prefix, utc_seconds
from feature_store.rows import Stored
from feature_store.views import Value, View

BUSY_SECONDS = 0.05  # readers do not wait for writers in WAL mode; for a checkpoint, this long


class SqliteRows:
    """One read-only connection to the file at ``path``, for all threads of a process.

    ``tables`` maps each view to be read to its table's name.
    """

    def __init__(self, path: Path, tables: Mapping[str, str], views: Iterable[View]) -> None:
        from feast.protos.feast.types.Value_pb2 import Value as ValueProto

        self._parse: Any = ValueProto.FromString
        self._lock = Lock()
        self._connection = sqlite3.connect(
            f"{path.as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        self._views = [(view.name, view.join_key, key_prefix(view.join_key)) for view in views]
        self._statement = _statement([tables[name] for name, _, _ in self._views])

    def read(self, keys: Mapping[str, str]) -> dict[str, Stored]:
        """Return view name to (values, event time in epoch seconds) of the rows that are there.

        ``keys`` are the entities by join key. Raises sqlite3.Error.
        """
        wanted = [entity_key(prefix, keys[join_key]) for _, join_key, prefix in self._views]
        with self._lock:
            rows = self._connection.execute(self._statement, wanted).fetchall()
        found: dict[str, Stored] = {}
        for place, group in groupby(rows, itemgetter(0)):
            values: dict[str, Value] = {}
            seconds = 0
            for _, name, data, seconds in group:  # noqa: B007 - Feast takes the time it reads last
                values[name] = decode(data, self._parse)
            found[self._views[place][0]] = values, utc_seconds(seconds)
        return found

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


def _statement(tables: list[str]) -> str:
    """Return Feast's selects as one: one lock of the file, one turn of the interpreter's lock."""
    return " UNION ALL ".join(
        f'SELECT {place}, feature_name, value, event_ts FROM "{table}" '  # noqa: S608 - tables of our own
        "WHERE entity_key = ?"
        for place, table in enumerate(tables)
    )
