"""Immutable parquet parts of the offline store: written whole or not at all, merged in levels.

A part appears by rename, so a reader never sees half of one. Parts are derived from the log and
are not synced to disk one by one. A part's name begins with the moment it was written and ends
with its level: so many parts of one level and one day become one of the next.
"""

from __future__ import annotations

import fcntl
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.file_lock import got_lock, locked
from feature_store.views import FeatureRow, View

MERGE_AFTER = 32
"""Parts of a level that become one of the next; readers open every file."""

MAX_BYTES = 16 << 20
"""Nothing larger is merged, so that a write that merges stays short."""

EMPTY = "empty.parquet"
MERGING, READING = "merge.lock", "read.lock"
"""One process merges a folder's parts at a time, and none while somebody reads them."""

WAIT_SECONDS = 10.0
"""How long reading waits for a merge, which takes a second or two by `MAX_BYTES`, and a change of
all parts for reading."""

MERGE_SECONDS = 2.0
"""How long a write waits for another process to merge; then a later one merges its parts, too."""

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
_MOMENT = pa.timestamp("us", tz="UTC")
_LEVEL = re.compile(r"-L(\d+)$")
_DAY = 8  # digits that a part's name begins with


class PartFolder:
    """One view's parts. ``writer`` sets those of this process apart from those of others."""

    def __init__(self, folder: Path, view: View, writer: str) -> None:
        self._folder, self._view, self._writer = folder, view, writer
        self._count = 0

    def write(self, rows: Sequence[FeatureRow], created: datetime) -> Path:
        """Write rows as one part, and merge now and then; ``created`` is when they are known."""
        self._count += 1
        name = f"{created:%Y%m%dT%H%M%S}-{self._writer}-{self._count:06d}-L0.parquet"
        path = self._folder / name
        # Dictionaries and statistics of a few rows cost more than they save.
        _write(path, _table(self._view, rows, created), lean=True)
        if self._count % MERGE_AFTER == 0 or self._count == 1:  # at 1: what past processes left
            merge_parts(self._folder, self._view, f"{created:%Y%m%d}")
        return path

    def remove_before(self, moment: datetime) -> int:
        """Remove parts of the days before a moment; return how many: 0 while parts are in use."""
        first = f"{moment:%Y%m%d}"
        with _if_alone_in(self._folder) as alone:
            old = [part for part in _parts(self._folder) if part.name[:_DAY] < first]
            # What processes that were killed had begun to write.
            begun = [file for file in self._folder.glob("*.tmp") if file.name[:_DAY] < first]
            for file in [*old, *begun] if alone else []:
                file.unlink(missing_ok=True)
        return len(old) if alone else 0


def ensure_parts(folder: Path, view: View) -> None:
    """Make the folder and an empty part, so that a join works before the first row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / READING).touch()
    empty = folder / EMPTY
    if not empty.exists():
        _write(empty, pa.Table.from_pylist([], schema=_schema(view)))


def adapt_parts(folder: Path, view: View) -> int:
    """Give all parts the view's columns, null where they had none; return how many changed.

    Readers take one schema for all. UnavailableError when others use the parts for too long.
    """
    schema, changed = _schema(view), 0
    with (
        locked(folder / MERGING, fcntl.LOCK_EX, WAIT_SECONDS),
        locked(folder / READING, fcntl.LOCK_EX, WAIT_SECONDS),
    ):
        for part in sorted(folder.glob("*.parquet")):
            if not pq.read_schema(part).equals(schema):
                _write(part, _read(part, schema))
                changed += 1
    return changed


def merge_parts(folder: Path, view: View, today: str) -> None:
    """Merge the oldest parts of each level that has enough, and one past day as far as it goes.

    A day is eight digits. While parts are read, or others merge for long, nothing happens: the next
    call does more. Were this process to end between rename and removal, rows would be there twice,
    which the point-in-time join does not see.
    """
    with _if_alone_in(folder) as alone:
        past: dict[str, list[Path]] = defaultdict(list)
        levels: dict[int, list[Path]] = defaultdict(list)
        for part in _parts(folder) if alone else []:
            if part.name[:_DAY] < today:
                past[part.name[:_DAY]].append(part)
            else:
                levels[_level(part)].append(part)
        for level in sorted(levels):
            for start in range(0, len(levels[level]) - MERGE_AFTER + 1, MERGE_AFTER)[:2]:
                oldest = levels[level][start : start + MERGE_AFTER]
                if _size(oldest) <= MAX_BYTES:
                    _merge(oldest, level + 1, view)
        for day in sorted(past):
            some = _fitting(past[day])
            if len(some) > 1:
                _merge(some, max(map(_level, some)), view)
                break


@contextmanager
def unchanged_parts(folders: Sequence[Path]) -> Iterator[None]:
    """Keep the parts of folders from being merged or removed; writers go on adding meanwhile.

    UnavailableError when somebody merges them for too long.
    """
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locked(folder / READING, fcntl.LOCK_SH, WAIT_SECONDS))
        yield


def _merge(parts: Sequence[Path], level: int, view: View) -> None:
    schema = _schema(view)
    stem = _LEVEL.sub("", parts[-1].stem)
    into = parts[-1].with_name(f"{stem}-L{level}.parquet")
    _write(into, pa.concat_tables([_read(part, schema) for part in parts]))
    for part in parts:
        if part != into:
            part.unlink(missing_ok=True)


def _fitting(parts: Sequence[Path]) -> list[Path]:
    """Return small parts, as many as fit into one and into one turn, oldest first."""
    found: list[Path] = []
    left = MAX_BYTES
    for part in parts:
        size = _size([part])
        if size <= MAX_BYTES // 2 and size <= left and len(found) < 8 * MERGE_AFTER:
            found.append(part)
            left -= size
    return found


def _parts(folder: Path) -> list[Path]:
    """Return the parts, oldest first."""
    return sorted(part for part in folder.glob("*.parquet") if part.name != EMPTY)


def _level(part: Path) -> int:
    found = _LEVEL.search(part.stem)
    return int(found[1]) if found else 0


def _size(parts: Sequence[Path]) -> int:
    return sum(part.stat().st_size for part in parts)


@contextmanager
def _if_alone_in(folder: Path) -> Iterator[bool]:
    """Tell whether nobody else merges or reads, until the block ends; a merge is waited for."""
    with (folder / MERGING).open("w") as merging, (folder / READING).open("w") as reading:
        alone = got_lock(merging, fcntl.LOCK_EX, MERGE_SECONDS)
        yield alone and got_lock(reading, fcntl.LOCK_EX)


def _table(view: View, rows: Sequence[FeatureRow], created: datetime) -> pa.Table:
    schema, values = _schema(view), [row.values for row in rows]
    arrays = [
        pa.array([row.key for row in rows], pa.string()),
        pa.array([row.event_time for row in rows], _MOMENT),
        pa.repeat(pa.scalar(created, _MOMENT), len(rows)),
        *(
            _column([of_row.get(name) for of_row in values], kind)
            for name, kind in view.columns.items()
        ),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(values: list[Any], kind: type) -> pa.Array:
    """Return values as the declared type, as online."""
    try:
        return pa.array(values, _TYPES[kind])
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # of another type, and so converted one by one
        return pa.array([None if value is None else kind(value) for value in values], _TYPES[kind])


def _schema(view: View) -> pa.Schema:
    fields = [(name, _TYPES[kind]) for name, kind in view.columns.items()]
    return pa.schema(
        [(view.join_key, pa.string()), ("event_timestamp", _MOMENT), ("created", _MOMENT), *fields]
    )


def _read(part: Path, schema: pa.Schema) -> pa.Table:
    """Return a part with just these columns; those it has not are null."""
    table = pq.ParquetFile(part).read(use_threads=False)
    if table.schema.equals(schema):
        return table
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _write(path: Path, table: pa.Table, *, lean: bool = False) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        # Given a path, pyarrow looks for a file system.
        with pa.OSFile(str(temporary), "wb") as file:
            pq.write_table(table, file, use_dictionary=not lean, write_statistics=not lean)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # of a full disk, each attempt would take a bit more
        raise
