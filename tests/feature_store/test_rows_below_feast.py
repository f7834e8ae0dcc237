"""The short ways to the rows of sqlite and Redis read and write what Feast does, to the byte."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.clock import ManualClock
from contracts.settings import Settings
from feature_store.reader import FeatureReadError, OnlineReader
from feature_store.rows import Stored
from feature_store.store import feast_rows, open_store
from feature_store.views import SERVED, TABLE, FeatureRow, Value
from feature_store.writer import FeatureWriter
from tests.feature_store.stores import Store, feast_of, redis_of, settings_of, through_feast

START = datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC)
KEYS = ("ann", "", "zoë 用户", "x" * 300, "o'neil\n\"", "unknown")
EXTREMES: dict[type, tuple[Value, ...]] = {
    int: (2**53 + 1, -1, 0, 127, 128, 2**63 - 1, -(2**63), None, 2.0),
    float: (1e-300, -0.5, 0.0, 3, float("inf"), None),
    str: ("ünsafe", "", "x" * 300, None, 7),
}


ONLINE = {view.name: view for view in TABLE.online}


def extreme_rows() -> list[FeatureRow]:
    """Rows of all views: whole, in part, written twice, with the writer's own state, and null."""
    rows = []
    for place, key in enumerate(KEYS[:-1]):
        for view in TABLE.online:
            values: dict[str, Value] = {
                name: EXTREMES[kind][(place + number) % len(EXTREMES[kind])]
                for number, (name, kind) in enumerate(view.columns.items())
            }
            first = next(iter(values))
            again: dict[str, Value] = {first: None}
            for at, of_it in ((place, values), (100.0005 + place, again)):
                moment = START + timedelta(seconds=at)
                rows.append(FeatureRow(view=view.name, key=key, values=of_it, event_time=moment))
    rows.append(FeatureRow(view="user", key="partly", values={"reports": 3}, event_time=START))
    return rows


@pytest.fixture(scope="module", params=("sqlite", "redis"))
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    redis = request.getfixturevalue("redis_address") if request.param == "redis" else ""
    found = Store(settings_of(tmp_path_factory.mktemp("rows"), redis))
    for row in extreme_rows():
        found.writer.write([row])
    return found


def served(rows: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return rows without what is not served; a column that a row lacks is None."""
    return {
        view.name: ({n: rows[view.name][0].get(n) for n in view.features}, rows[view.name][1])
        for view in SERVED
        if view.name in rows
    }


@pytest.mark.parametrize("version", [*KEYS, "partly"])
@pytest.mark.parametrize("user", [*KEYS, "partly"])
def test_every_row_is_what_feast_reads(filled: Store, user: str, version: str) -> None:
    keys = {view.join_key: user for view in SERVED}
    keys |= {"session_id": user[::-1] or "partly", "policy_version": version}
    reference = feast_rows(feast_of(filled), SERVED)
    assert served(filled.online._rows.read(keys)) == reference.read(keys)


@pytest.mark.parametrize("view", ONLINE)
def test_the_writer_reads_back_what_feast_reads(filled: Store, view: str) -> None:
    reference = feast_rows(feast_of(filled), TABLE.online)
    theirs = reference.latest(ONLINE[view], KEYS)
    ours = filled.writer.latest(view, KEYS)
    assert ours.keys() == theirs.keys() == set(KEYS[:-1])
    for key, (values, moment) in ours.items():
        assert values == theirs[key][0]
        if filled.is_redis:
            assert moment == theirs[key][1]
        else:  # Feast keeps whole seconds there, we beside them the exact time
            assert moment.replace(microsecond=0) == theirs[key][1]


def test_what_is_written_is_what_feast_writes_to_the_byte(filled: Store, tmp_path: Path) -> None:
    address = filled.settings.features.redis.partition(",")[0] if filled.is_redis else ""
    other = through_feast(settings_of(tmp_path, address))
    for row in extreme_rows():
        other.writer.write([row])
    assert dump(filled) == dump(other)


def dump(store: Store) -> dict[Any, Any]:
    """Return all that Feast's layout holds of a store."""
    if store.is_redis:
        client = redis_of(store)
        found: dict[Any, Any] = {key: client.hgetall(key) for key in client.scan_iter()}
        lives: list[Any] = [client.ttl(key) for key in found]
        assert all(life > 0 for life in lives)
        return found
    tables: dict[Any, Any] = {}
    with sqlite3.connect(store.settings.state_dir / "features" / "online.db") as connection:
        for view in ONLINE:
            table = f"headrace_{view}"
            rows = connection.execute(f'SELECT * FROM "{table}"').fetchall()  # noqa: S608 - a table of ours
            # Of columns written apart, Feast keeps their times apart: ours is the entity's.
            newest = {key: max(r[5] for r in rows if r[0] == key) for key, *_ in rows}
            tables[view] = {(*row[:5], newest[row[0]], *row[6:]) for row in rows}
    return tables


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/New_York"])
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_times_are_those_of_feast_in_any_time_zone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kind: str,
    zone: str,
) -> None:
    redis = request.getfixturevalue("redis_address") if kind == "redis" else ""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        settings = settings_of(tmp_path, redis)
        row = FeatureRow(view="user", key="ann", values={"reports": 1}, event_time=START)
        writer = FeatureWriter(settings, ManualClock(START))
        writer.write([row])
        keys = {view.join_key: "ann" for view in SERVED}
        found = served(OnlineReader(settings)._rows.read(keys))
        values, seconds = found["user"]
        assert (values["reports"], seconds) == (1, int(START.timestamp()))
        assert found == feast_rows(open_store(settings), SERVED).read(keys)
        assert writer.latest("user", ["ann"])["ann"][1] == START
    time.tzset()


def test_a_reader_sees_what_is_written_while_it_is_open(filled: Store) -> None:
    at = datetime(2026, 3, 1, 13, tzinfo=UTC)
    assert filled.online.read("late", "", "", at)["user.decisions"].value is None
    row = FeatureRow(view="user", key="late", values={"decisions": 1}, event_time=at)
    filled.another_writer().write([row])
    assert filled.online.read("late", "", "", at)["user.decisions"].value == 1


def test_a_store_that_is_broken_raises_the_error_that_is_answered_without(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    reader = OnlineReader(settings)
    with sqlite3.connect(tmp_path / "features" / "online.db") as connection:
        connection.execute("DROP TABLE headrace_user")
    with pytest.raises(FeatureReadError, match="headrace_user"):
        reader.read("ann", "", "", START)


def test_the_times_of_a_store_that_feast_alone_has_written_are_taken_over(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    through_feast(settings).write("ann", 100, decisions=2)
    store = Store(settings)
    assert store.write("ann", 50, decisions=1) == 1
    assert store.write("ann", 150, decisions=3) == 0
    assert store.read("ann", 151) == 3


def test_a_redis_that_began_anew_is_given_the_script_again(
    redis_address: str, tmp_path: Path
) -> None:
    store = Store(settings_of(tmp_path, redis_address))
    store.write("ann", 0, decisions=1)
    client = redis_of(store)
    client.script_flush()
    client.flushdb()
    assert store.write("ann", 1, decisions=2) == 0
    assert store.read("ann", 2) == 2
