"""Writes rows into Feast's sqlite online store in Feast's table layout, and reads them back.

Beside Feast's table of a view stands one of ours with the exact time of each key's newest event,
as Feast keeps whole seconds, and the time of its last write. Both change in one transaction that
begins with the write lock, so that of several writers none overwrites what is newer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

from contracts.clock import Clock
from feature_store.encoding import (
    decode,
    encoder,
    entity_key,
    key_prefix,
    local_seconds,
    microseconds,
    moment_of,
    utc_seconds,
)
from feature_store.rows import Latest
from feature_store.views import FeatureRow, Value, View

BATCH = 500
"""Rows per transaction: longer ones keep other writers waiting."""

BUSY_SECONDS = 5.0


class SqliteWrites:
    """One connection to the file at ``path`` for a process that writes ``views``.

    ``tables`` maps each view's name to Feast's table, which is there. Raises sqlite3.Error.
    """

    def __init__(
        self, path: Path, tables: Mapping[str, str], views: Iterable[View], clock: Clock
    ) -> None:
        from feast.protos.feast.types.Value_pb2 import Value as ValueProto

        self._parse: Any = ValueProto.FromString
        self._clock, self._lock = clock, Lock()
        self._connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._views = {view.name: _Layout(view, tables[view.name]) for view in views}
        for of in self._views.values():
            self._make_newest(of)
        # What the file is made of stands in the file itself, as Feast leaves it.
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def write(self, view: View, rows: Sequence[FeatureRow]) -> int:
        """Write rows of a view in the order of their events; return how many were late."""
        of, late, written = self._views[view.name], 0, microseconds(self._clock.now())
        ordered = sorted(rows, key=lambda row: row.event_time)
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            keyed = [(entity_key(of.prefix, row.key), row) for row in batch]
            with self._transaction():
                late += self._write_batch(of, keyed, written)
        return late

    def latest(self, view: View, keys: Sequence[str]) -> dict[str, Latest]:
        """Return the row of each key that is there."""
        of, found = self._views[view.name], dict[str, Latest]()
        for start in range(0, len(keys), BATCH):
            named = {entity_key(of.prefix, key): key for key in keys[start : start + BATCH]}
            with self._lock:
                rows = self._connection.execute(of.select(len(named)), list(named)).fetchall()
            for key, micros, name, data in rows:
                values = found.setdefault(named[key], ({}, moment_of(micros)))[0]
                values[name] = decode(data, self._parse)
        return found

    def prune(self, before: datetime, limit: int) -> int:
        """Remove at most ``limit`` keys per view last written before a moment; return how many."""
        removed = 0
        for of in self._views.values():
            with self._transaction():
                keys = self._connection.execute(
                    f"SELECT entity_key FROM {of.newest} WHERE written < ? "  # noqa: S608 - tables of our own
                    "ORDER BY written LIMIT ?",
                    (microseconds(before), limit),
                ).fetchall()
                for table in (of.table, of.newest):
                    self._connection.executemany(
                        f"DELETE FROM {table} WHERE entity_key = ?",  # noqa: S608 - tables of our own
                        keys,
                    )
            removed += len(keys)
        return removed

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _write_batch(
        self, of: _Layout, rows: Sequence[tuple[bytes, FeatureRow]], written: int
    ) -> int:
        keys = list({key: None for key, _ in rows})
        stored: dict[bytes, int] = dict(
            self._connection.execute(of.select_newest(len(keys)), keys).fetchall()
        )
        newest = dict(stored)
        fresh: dict[bytes, dict[str, Value]] = {}
        late = 0
        for key, row in rows:
            micros = microseconds(row.event_time)
            if key in newest and micros < newest[key]:
                late += 1
                continue
            newest[key] = micros
            fresh.setdefault(key, {}).update(row.values)
        by_count: dict[int, list[list[Any]]] = {}
        for key, values in fresh.items():
            if not values:
                continue
            by_count.setdefault(len(values), []).append(_cells(of, key, values, newest[key]))
        for count, cells in by_count.items():
            self._connection.executemany(of.upsert(count), cells)
        partial = [
            (local_seconds(newest[key]), key)
            for key, values in fresh.items()
            if key in stored and len(values) < len(of.encode)
        ]
        if partial:  # an entity has one time, as on Redis: the newest of its columns
            self._connection.executemany(of.touch, partial)
        times = [(key, newest[key], written) for key in fresh]
        self._connection.executemany(of.upsert_newest, times)
        return late

    def _make_newest(self, of: _Layout) -> None:
        """Make the table of times; it begins with what Feast's table knows."""
        with self._transaction():
            if not self._connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = ?", (of.newest.strip('"'),)
            ).fetchone():
                self._connection.execute(
                    f"CREATE TABLE {of.newest} (entity_key BLOB PRIMARY KEY, "
                    "event_micros INTEGER NOT NULL, written INTEGER NOT NULL) WITHOUT ROWID"
                )
                times = self._connection.execute(
                    f"SELECT entity_key, max(event_ts) FROM {of.table} GROUP BY entity_key"  # noqa: S608 - tables of our own
                )
                known = ((key, utc_seconds(seconds) * 1_000_000) for key, seconds in times)
                self._connection.executemany(
                    of.upsert_newest, [(key, micros, micros) for key, micros in known]
                )
                self._connection.execute(f"CREATE INDEX {of.index} ON {of.newest} (written)")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


class _Layout:
    """Statements and encoders of a view: made once, used by every call."""

    def __init__(self, view: View, table: str) -> None:
        self.prefix = key_prefix(view.join_key)
        self.encode = {name: encoder(kind) for name, kind in view.columns.items()}
        self.kinds = view.columns
        self.table, self.newest = f'"{table}"', f'"{table}_newest"'
        self.index = f'"{table}_written"'
        self.touch = f"UPDATE {self.table} SET event_ts = ? WHERE entity_key = ?"  # noqa: S608 - as above
        self.upsert_newest = f"INSERT OR REPLACE INTO {self.newest} VALUES (?, ?, ?)"  # noqa: S608 - as above

    def upsert(self, count: int) -> str:
        """Return the statement that writes so many values: one per value takes a third longer."""
        places = ", ".join(["(?, ?, ?, ?, ?, NULL)"] * count)
        return (
            f"INSERT INTO {self.table} "  # noqa: S608 - tables of our own
            "(entity_key, feature_name, value, value_text, event_ts, created_ts) "
            f"VALUES {places} ON CONFLICT (entity_key, feature_name) DO UPDATE SET "
            "value = excluded.value, value_text = excluded.value_text, "
            "event_ts = excluded.event_ts, created_ts = NULL"
        )

    def select_newest(self, keys: int) -> str:
        """Return the statement for the newest event times of so many keys."""
        return (
            f"SELECT entity_key, event_micros FROM {self.newest} "  # noqa: S608 - tables of our own
            f"WHERE entity_key IN ({','.join('?' * keys)})"
        )

    def select(self, keys: int) -> str:
        """Return the statement for the rows of so many keys."""
        return (
            f"SELECT entity_key, event_micros, feature_name, value FROM {self.newest} "  # noqa: S608 - tables of our own
            f"JOIN {self.table} USING (entity_key) WHERE entity_key IN ({','.join('?' * keys)})"
        )


def _cells(of: _Layout, key: bytes, values: Mapping[str, Value], micros: int) -> list[Any]:
    """Return what `_Layout.upsert` binds for the values of one key, as Feast would."""
    seconds, found = local_seconds(micros), list[Any]()
    for name, value in values.items():
        # Feast keeps the text of the value as stored, so of 1 in a float column "1.0".
        text = None if value is None else str(of.kinds[name](value))
        found += (key, name, of.encode[name](value), text, seconds)
    return found
