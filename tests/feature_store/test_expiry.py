"""What is not written any more leaves the stores: keys online, rows offline."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from contracts.settings import Features
from feature_store import writer
from feature_store.views import VIEWS
from tests.feature_store.stores import MAX_AGE, START, Store, redis_of, settings_of, through_feast
from tests.until import until


@pytest.mark.parametrize("feast", [False, True])
def test_a_key_in_redis_lives_for_the_maximum_age_from_its_last_write(
    redis_address: str, tmp_path: Path, feast: bool
) -> None:
    settings = settings_of(tmp_path, redis_address)
    store = through_feast(settings) if feast else Store(settings)
    store.write("ann", 0, decisions=1)
    client: Any = redis_of(store)
    (key,) = client.scan_iter()
    assert MAX_AGE - 60 < client.ttl(key) <= MAX_AGE
    client.expire(key, 5)
    store.write("ann", 1, decisions=2)
    assert MAX_AGE - 60 < client.ttl(key) <= MAX_AGE


def test_an_expired_key_is_gone_from_redis_and_begins_anew(
    redis_address: str, tmp_path: Path
) -> None:
    store = Store(settings_of(tmp_path, redis_address, max_age=0.5))
    store.write("ann", 10, decisions=1, reports=3)
    client: Any = redis_of(store)
    (key,) = client.scan_iter()
    until("the key to expire", lambda: not client.exists(key))
    assert store.writer.latest("user", ["ann"]) == {}
    assert store.write("ann", 9, decisions=1) == 0
    assert store.writer.latest("user", ["ann"])["ann"][0]["reports"] is None


def test_a_late_row_does_not_lengthen_a_life(redis_address: str, tmp_path: Path) -> None:
    store = Store(settings_of(tmp_path, redis_address))
    store.write("ann", 10, decisions=1)
    client: Any = redis_of(store)
    (key,) = client.scan_iter()
    client.expire(key, 5)
    assert store.write("ann", 9, decisions=0) == 1
    assert client.ttl(key) <= 5


def test_pruning_sqlite_removes_the_keys_longest_unwritten_up_to_a_limit(tmp_path: Path) -> None:
    store = Store(settings_of(tmp_path))
    for number in range(10):
        store.write(f"key {number}", 1000, decisions=number)
        store.clock.advance(1)
    store.write("key 0", 1000, decisions=0)  # the event is no newer, the write is
    before = START + timedelta(seconds=6)
    assert store.writer.prune(before, limit=2) == 2
    keys = [f"key {number}" for number in range(10)]
    assert set(keys) - set(store.writer.latest("user", keys)) == {"key 1", "key 2"}
    assert store.writer.prune(before, limit=100) == 3
    assert store.writer.prune(before, limit=100) == 0
    left = store.writer.latest("user", keys)
    assert list(left) == ["key 0", "key 6", "key 7", "key 8", "key 9"]
    assert store.read("key 5", 1001) is None
    assert store.write("key 5", 1, decisions=7) == 0


def test_writing_prunes_what_has_expired_a_bounded_share_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PRUNE_LIMIT", 3)
    store = Store(settings_of(tmp_path))
    keys = [f"key {number}" for number in range(5)]
    store.writer.write([store.row(key, 0, decisions=1) for key in keys])

    def left_after_a_write() -> int:
        store.write("another", 0, decisions=1)
        return len(store.writer.latest("user", keys))

    store.clock.advance(MAX_AGE)
    assert left_after_a_write() == 5
    store.clock.advance(61)
    assert left_after_a_write() == 2
    assert left_after_a_write() == 2  # once a minute
    store.clock.advance(61)
    assert left_after_a_write() == 0


def test_offline_rows_are_kept_for_the_days_of_the_settings(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(settings_of(tmp_path), features=Features(retention_days=3))
    store = Store(settings)
    folder = tmp_path / "features" / "offline" / "user"

    def rows() -> int:
        return sum(pq.read_metadata(part).num_rows for part in folder.glob("*.parquet"))

    for _ in range(3):
        store.write("ann", 0, decisions=1)
        store.clock.advance(86_400)
    store.write("ann", 0, decisions=1)
    assert rows() == 4
    store.clock.advance(86_400)
    store.write("ann", 0, decisions=1)
    assert rows() == 4
    store.clock.advance(30 * 86_400)
    store.write("ann", 0, decisions=1)
    assert rows() == 1
    assert (folder / "empty.parquet").exists()
    assert all((folder.parent / view / "empty.parquet").exists() for view in VIEWS)
