"""The short way to sqlite's rows gives what Feast's public read gives, key for key."""

from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.clock import ManualClock
from contracts.settings import Settings
from feature_store.reader import FeatureReadError, OnlineReader
from feature_store.sqlite_rows import entity_key, key_prefix
from feature_store.views import SERVED, VIEWS, FeatureRow, Value
from feature_store.writer import FeatureWriter

START = datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC)
KEYS = ("ann", "", "zoë 用户", "x" * 300, "o'neil\n\"", "unknown")
FULL: dict[str, dict[str, Value]] = {
    "user": {"decisions": 2**53 + 1, "violations": 0, "rewards": 4, "reward_mean": 1e-300},
    "session": {"turns": 2, "last_action": "ünsafe", "last_reward": -0.5},
    "policy_version": {"decisions": 5, "violations": None, "rewards": 2, "reward_mean": 0.25},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with rows that are whole, in part, written twice, and with the writer's own state."""
    found = Settings(state_dir=tmp_path_factory.mktemp("rows"))
    writer = FeatureWriter(found, ManualClock(START))

    def write(view: str, key: str, at: float, values: dict[str, Value]) -> None:
        moment = START + timedelta(seconds=at)
        writer.write([FeatureRow(view=view, key=key, values=values, event_time=moment)])

    for place, key in enumerate(KEYS[:-1]):
        for view, values in FULL.items():
            write(view, key, place, values)
            first = next(iter(values))
            write(view, key, 100 + place, {first: 7, "counted": '{"offsets": "not served"}'})
    write("user", "partly", 0, {"reports": 3})
    write("session", "partly", 5, {"last_action": ""})
    return found


@pytest.fixture(scope="module")
def reader(settings: Settings) -> OnlineReader:
    return OnlineReader(settings)


def served(reader: OnlineReader, keys: dict[str, str]) -> dict[str, tuple[dict[str, Value], int]]:
    """Return the short read without what is not served; a column that a row lacks is None."""
    assert reader._rows is not None
    rows = reader._rows.read(keys)
    return {
        view.name: (
            {name: rows[view.name][0].get(name) for name in view.features},
            rows[view.name][1],
        )
        for view in SERVED
        if view.name in rows
    }


@pytest.mark.parametrize("version", [*KEYS, "partly"])
@pytest.mark.parametrize("user", [*KEYS, "partly"])
def test_every_row_is_what_feast_reads(reader: OnlineReader, user: str, version: str) -> None:
    keys = {"user_id": user, "session_id": user[::-1] or "partly", "policy_version": version}
    assert served(reader, keys) == reader.read_through_feast(keys)


def test_times_are_those_of_feast_in_any_time_zone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        settings = Settings(state_dir=tmp_path)
        row = FeatureRow(view="user", key="ann", values={"reports": 1}, event_time=START)
        FeatureWriter(settings, ManualClock(START)).write([row])
        reader = OnlineReader(settings)
        keys = {"user_id": "ann", "session_id": "", "policy_version": ""}
        values, seconds = served(reader, keys)["user"]
        assert (values["reports"], seconds) == (1, int(START.timestamp()))
        assert served(reader, keys) == reader.read_through_feast(keys)
    time.tzset()


@given(st.sampled_from(sorted(VIEWS)), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_key_has_the_bytes_that_feast_gives_it(view: str, value: str) -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value as ValueProto

    join_key = VIEWS[view].join_key
    theirs = serialize_entity_key(
        EntityKey(join_keys=[join_key], entity_values=[ValueProto(string_val=value)]), 3
    )
    assert entity_key(key_prefix(join_key), value) == theirs


def test_a_reader_sees_what_is_written_while_it_is_open(
    settings: Settings, reader: OnlineReader
) -> None:
    at = datetime(2026, 3, 1, 13, tzinfo=UTC)
    assert reader.read("late", "", "", at)["user.decisions"].value is None
    row = FeatureRow(view="user", key="late", values={"decisions": 1}, event_time=at)
    FeatureWriter(settings, ManualClock(at), "second").write([row])
    assert reader.read("late", "", "", at)["user.decisions"].value == 1


def test_a_store_that_is_broken_raises_the_error_that_is_answered_without(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    reader = OnlineReader(settings)
    with sqlite3.connect(tmp_path / "features" / "online.db") as connection:
        connection.execute("DROP TABLE headrace_user")
    with pytest.raises(FeatureReadError, match="headrace_user"):
        reader.read("ann", "", "", START)
