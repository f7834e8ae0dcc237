"""Immutable parquet parts of the offline store: written whole or not at all, merged when many.

A part appears by rename, so a reader never sees half of one. Parts are derived from the log and
are not synced to disk one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.views import FeatureRow, View

MERGE_AFTER = 64
"""Merge a writer's parts once it has this many: readers open every file."""

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
_MOMENT = pa.timestamp("us", tz="UTC")


def ensure_parts(folder: Path, view: View) -> None:
    """Make the folder and an empty part, so that a join works before the first row."""
    folder.mkdir(parents=True, exist_ok=True)
    empty = folder / "empty.parquet"
    if not empty.exists():
        _write(empty, pa.Table.from_pylist([], schema=_schema(view)))


def write_part(
    folder: Path, view: View, rows: Sequence[FeatureRow], created: datetime, name: str
) -> Path:
    """Write rows as one part; ``created`` is the moment they became known."""
    table = pa.Table.from_pylist(
        [
            {
                view.join_key: row.key,
                "event_timestamp": row.event_time,
                "created": created,
                **row.values,
            }
            for row in rows
        ],
        schema=_schema(view),
    )
    path = folder / f"{name}.parquet"
    _write(path, table)
    return path


def merge_parts(parts: Sequence[Path], into: Path) -> None:
    """Replace parts by one. Between rename and removal a row may be read twice, which the
    point-in-time join does not see."""
    _write(into, pa.concat_tables([pq.read_table(part) for part in parts]))
    for part in parts:
        part.unlink(missing_ok=True)


def _schema(view: View) -> pa.Schema:
    fields = [(name, _TYPES[kind]) for name, kind in view.columns.items()]
    return pa.schema(
        [(view.join_key, pa.string()), ("event_timestamp", _MOMENT), ("created", _MOMENT), *fields]
    )


def _write(path: Path, table: pa.Table) -> None:
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)
