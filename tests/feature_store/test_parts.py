"""A long history of small writes stays few files, each write stays cheap, no row is lost."""

from __future__ import annotations

import resource
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_store import parts
from feature_store.parts import MERGE_AFTER, PartFolder, adapt_parts, ensure_parts, merge_parts
from feature_store.views import FeatureRow, View
from tests.feature_store.stores import Store, feast_of, settings_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
VIEW = View(
    name="user", join_key="user_id", description="", features={"decisions": int, "risk": float}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ensure_parts(tmp_path, VIEW)
    return tmp_path


def row(number: int, at: datetime = NOON) -> FeatureRow:
    values = {"decisions": number, "risk": 0.5}
    return FeatureRow(view="user", key=f"user {number}", values={**values}, event_time=at)


def numbers(folder: Path) -> list[int]:
    found: list[int] = []
    for part in folder.glob("*.parquet"):
        found += pq.read_table(part)["decisions"].to_pylist()
    return found


def files(folder: Path) -> int:
    return len(list(folder.glob("*.parquet"))) - 1  # the empty one


def test_thousands_of_small_writes_are_few_files_and_few_copies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = parts._read

    def counted(part: Path, schema: Any) -> Any:
        table = plain(part, schema)
        read.append(len(table))
        return table

    monkeypatch.setattr(parts, "_read", counted)
    ours, most = PartFolder(folder, VIEW, "writer"), 0
    writes = 3 * MERGE_AFTER**2 + 5
    for number in range(writes):
        before = len(read)
        ours.write([row(number)], NOON + timedelta(seconds=number))
        most = max(most, files(folder))
        assert len(read) - before <= 3 * MERGE_AFTER  # files that one write reads
    assert most <= 3 * MERGE_AFTER
    assert sorted(numbers(folder)) == list(range(writes))
    assert sum(read) <= 2 * writes  # a row is copied once per level


def test_the_parts_of_past_days_become_one(folder: Path) -> None:
    numbered = count()
    for day in range(5):
        ours = PartFolder(folder, VIEW, f"writer-{day}")  # a process of its own, each a few parts
        for _ in range(MERGE_AFTER + 3):
            ours.write([row(next(numbered))], NOON + timedelta(days=day))
    days = Counter(part.name[:8] for part in folder.glob("2*.parquet"))
    assert days == {f"2026030{day}": 1 for day in range(1, 5)} | {"20260305": 4}
    assert sorted(numbers(folder)) == list(range(next(numbered)))


def test_large_parts_are_not_merged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_BYTES", 1)
    ours = PartFolder(folder, VIEW, "writer")
    for number in range(2 * MERGE_AFTER):
        ours.write([row(number)], NOON)
    merge_parts(folder, VIEW, "20260401")
    assert files(folder) == 2 * MERGE_AFTER


def test_parts_of_a_process_that_ended_are_merged_by_the_next(folder: Path) -> None:
    for start in range(100):
        PartFolder(folder, VIEW, f"writer-{start}").write([row(start)], NOON)
    assert files(folder) < 2 * MERGE_AFTER
    assert sorted(numbers(folder)) == list(range(100))


def test_several_writers_merge_one_folder(folder: Path) -> None:
    def work(writer: int) -> None:
        ours = PartFolder(folder, VIEW, f"writer-{writer}")
        for number in range(150):
            ours.write([row(writer * 1000 + number)], NOON)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    wanted = [writer * 1000 + number for writer in range(4) for number in range(150)]
    assert sorted(numbers(folder)) == wanted
    assert files(folder) < 5 * MERGE_AFTER


def test_a_view_that_gains_a_column_reads_its_old_parts(tmp_path: Path) -> None:
    store = Store(settings_of(tmp_path))
    store.clock.advance(10)
    store.write("ann", 0, decisions=1)
    users = tmp_path / "features" / "offline" / "user"
    for part in users.glob("*.parquet"):  # as of a version that knew fewer columns, and others
        table = pq.read_table(part).drop_columns(["reports"])
        pq.write_table(table.append_column("gone", [[0] * len(table)]), part)
    (tmp_path / "features" / "applied").write_text("of an older version")
    feast_of(store)
    store.write("ann", 1, decisions=2, reports=5)
    assert store.recall("ann", 15) == [2]
    assert store.recall("ann", 15, name="user.reports") == [5]
    assert not adapt_parts(users, store.writer._views["user"])


def test_a_past_moment_can_be_asked_for_while_parts_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MERGE_AFTER", 2)
    store = Store(settings_of(tmp_path))
    store.write("ann", 0, decisions=1)
    stop = Event()

    def write() -> int:
        for number in count(1):
            if stop.is_set():
                break
            store.write(f"other {number}", 0, decisions=number)
        return number

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        try:
            assert [store.recall("ann", 15) for _ in range(10)] == [[1]] * 10
        finally:
            stop.set()
        assert written.result(30) > 10


def test_a_write_that_fails_leaves_nothing_behind(folder: Path) -> None:
    writer = PartFolder(folder, VIEW, "worker")
    before = sorted(folder.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))  # as of a full disk
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="File too large"):
                writer.write([row(1)], NOON)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(folder.iterdir()) == before


def test_what_killed_processes_had_begun_to_write_leaves_with_the_parts_of_its_day(
    folder: Path,
) -> None:
    writer = PartFolder(folder, VIEW, "worker")
    days = [NOON - timedelta(days=days) for days in (2, 1, 0)]
    begun = [writer.write([row(1)], day).with_suffix(".tmp") for day in days]
    for file in begun:
        file.touch()
    assert writer.remove_before(NOON - timedelta(days=1)) == 1
    assert [file.exists() for file in begun] == [False, True, True]
