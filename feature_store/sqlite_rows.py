"""Reads rows of Feast's sqlite online store by the statement Feast itself runs, and no more.

Feast's public read spends most of its time around that statement. Keys and values are stored in
Feast's own encodings; `tests/feature_store` holds both reads equal, and Feast's version is pinned.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from feature_store.views import Value, View

BUSY_SECONDS = 0.05  # readers do not wait for writers in WAL mode; for a checkpoint, this long
STRING = 2  # feast.ValueType.STRING


class SqliteRows:
    """One read-only connection to the file at ``path``, for all threads of a process.

    ``tables`` maps each view to be read to its table's name.
    """

    def __init__(self, path: Path, tables: Mapping[str, str], views: tuple[View, ...]) -> None:
        from feast.protos.feast.types.Value_pb2 import Value as ValueProto

        self._proto: Any = ValueProto
        self._lock = Lock()
        self._connection = sqlite3.connect(
            f"{path.as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        self._views = [
            (view.name, view.join_key, key_prefix(view.join_key), _statement(tables[view.name]))
            for view in views
        ]

    def read(self, keys: Mapping[str, str]) -> dict[str, tuple[dict[str, Value], int]]:
        """Return view name to (values, event time in epoch seconds) of the rows that are there.

        ``keys`` are the entities by join key. Raises sqlite3.Error.
        """
        found = {}
        with self._lock:
            for view, join_key, prefix, statement in self._views:
                key = entity_key(prefix, keys[join_key])
                rows = self._connection.execute(statement, (key,)).fetchall()
                if rows:
                    found[view] = rows
        return {view: self._plain(rows) for view, rows in found.items()}

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _plain(self, rows: list[tuple[str, bytes, int]]) -> tuple[dict[str, Value], int]:
        values: dict[str, Value] = {}
        for name, data, _ in rows:
            proto = self._proto.FromString(data)
            field = proto.WhichOneof("val")
            values[name] = getattr(proto, field) if field else None
        # Of an entity's rows, Feast takes the time of the one it reads last. It writes UTC without
        # its zone, as epoch seconds of local time: the same way back.
        moment = datetime.fromtimestamp(rows[-1][2])
        return values, int(moment.replace(tzinfo=UTC).timestamp())


def key_prefix(join_key: str) -> bytes:
    """Return Feast's entity key (serialization version 3) up to the length of its value."""
    name = join_key.encode()
    return struct.pack("<III", 1, STRING, len(name)) + name + struct.pack("<I", STRING)


def entity_key(prefix: bytes, value: str) -> bytes:
    """Return the key of one entity from its view's `key_prefix`."""
    text = value.encode()
    return prefix + struct.pack("<I", len(text)) + text


def _statement(table: str) -> str:
    return (
        f'SELECT feature_name, value, event_ts FROM "{table}" '  # noqa: S608 - a table of our own
        "WHERE entity_key IN (?) ORDER BY entity_key"
    )
