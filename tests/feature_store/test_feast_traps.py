"""What Feast does that would be wrong here, shown in Feast itself, and that our store does not.

When a new version of Feast no longer does it, the first half of a test fails.
"""

from __future__ import annotations

import math
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from contracts.settings import Settings
from feature_store.store import feast_rows
from feature_store.views import USER, VIEWS, Value
from tests.feature_store.stores import MAX_AGE, START, Store, feast_of


def by_feast(store: Store, key: str, at: float, **values: Value) -> None:
    """Write a row through Feast's batch, as it is."""
    feast = feast_of(store)
    rows = feast_rows(feast, (USER,))
    moment = START + timedelta(seconds=at)
    data = [(rows._key(USER, key), rows._protos(USER, values), moment, None)]
    feast.provider.online_write_batch(feast.config, feast.get_feature_view("user"), data, None)


def seen_by_feast(store: Store, key: str, name: str = "decisions") -> Any:
    response = feast_of(store).get_online_features(
        features=[f"user:{name}"], entity_rows=[{"user_id": key}]
    )
    return response.to_dict()[name][0]


def status_by_feast(store: Store, key: str, name: str) -> str:
    response = feast_of(store).get_online_features(
        features=[f"user:{name}"], entity_rows=[{"user_id": key}]
    )
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    place = list(response.proto.metadata.feature_names.val).index(name)
    return str(FieldStatus.Name(response.proto.results[place].statuses[0]))


def test_feast_lets_an_older_event_overwrite_on_sqlite(new_store: Store) -> None:
    by_feast(new_store, "feast", 100, decisions=2)
    by_feast(new_store, "feast", 50, decisions=1)
    assert seen_by_feast(new_store, "feast") == (2 if new_store.is_redis else 1)
    new_store.write("ours", 100, decisions=2)
    new_store.write("ours", 50, decisions=1)
    assert new_store.read("ours", 101) == seen_by_feast(new_store, "ours") == 2


def test_feast_takes_the_last_row_of_a_batch_on_sqlite(new_store: Store) -> None:
    feast = feast_of(new_store)
    rows = feast_rows(feast, (USER,))
    data = [
        (rows._key(USER, "feast"), rows._protos(USER, {"decisions": n}), moment_at(n), None)
        for n in (5, 4)
    ]
    feast.provider.online_write_batch(feast.config, feast.get_feature_view("user"), data, None)
    assert seen_by_feast(new_store, "feast") == (5 if new_store.is_redis else 4)
    new_store.writer.write([new_store.row("ours", n, decisions=n) for n in (5, 4)])
    assert new_store.read("ours", 6) == 5


def moment_at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_feast_drops_a_correction_of_the_same_time_on_redis(new_store: Store) -> None:
    by_feast(new_store, "feast", 5, decisions=1)
    by_feast(new_store, "feast", 5, decisions=2)
    assert seen_by_feast(new_store, "feast") == (1 if new_store.is_redis else 2)
    new_store.write("ours", 5, decisions=1)
    assert new_store.write("ours", 5, decisions=2) == 0
    assert new_store.read("ours", 6) == 2


def test_feast_serves_what_is_past_its_ttl(new_store: Store) -> None:
    new_store.write("ann", 0, decisions=1)  # START is long past
    assert feast_of(new_store).get_feature_view("user").ttl == timedelta(seconds=MAX_AGE)
    assert seen_by_feast(new_store, "ann") == 1
    assert status_by_feast(new_store, "ann", "decisions") == "PRESENT"
    found = new_store.online.read("ann", "", "base", moment_at(MAX_AGE + 60))["user.decisions"]
    assert (found.value, found.age_seconds) == (None, MAX_AGE + 60)


def test_feast_cannot_tell_missing_from_null_on_redis(new_store: Store) -> None:
    new_store.write("null", 0, decisions=None)
    expected = "PRESENT" if new_store.is_redis else "NOT_FOUND"
    assert status_by_feast(new_store, "missing", "decisions") == expected
    assert seen_by_feast(new_store, "missing") is seen_by_feast(new_store, "null") is None
    at = moment_at(30)
    null = new_store.online.read("null", "", "base", at)["user.decisions"]
    missing = new_store.online.read("missing", "", "base", at)["user.decisions"]
    assert (null.value, null.age_seconds) == (None, 30)
    assert (missing.value, missing.age_seconds) == (None, None)


def test_feast_checks_no_type_of_what_it_is_given(new_store: Store) -> None:
    from feast.protos.feast.types.Value_pb2 import Value as ValueProto

    feast = feast_of(new_store)
    rows = feast_rows(feast, (USER,))
    wrong = {"decisions": ValueProto(double_val=1.5)}  # declared an integer
    data = [(rows._key(USER, "feast"), wrong, START, None)]
    feast.provider.online_write_batch(feast.config, feast.get_feature_view("user"), data, None)
    assert seen_by_feast(new_store, "feast") == 1.5
    new_store.write("ours", 0, decisions=3.0, reward_mean=1)
    read = [new_store.read("ours", 1, f"user.{name}") for name in ("decisions", "reward_mean")]
    assert [(value, type(value)) for value in read] == [(3, int), (1.0, float)]
    with pytest.raises(ValueError, match="invalid literal"):
        new_store.write("ours", 1, decisions="many")


def test_feast_keeps_whole_seconds_on_sqlite(new_store: Store) -> None:
    new_store.write("ann", 0.25, decisions=1)
    feast = feast_of(new_store)
    (_, moment) = feast_rows(feast, VIEWS.values()).latest(USER, ["ann"])["ann"]
    assert (moment == moment_at(0.25)) is new_store.is_redis
    assert new_store.writer.latest("user", ["ann"])["ann"][1] == moment_at(0.25)


def test_feasts_join_leaks_the_future_without_a_flag(new_store: Store) -> None:
    new_store.clock.advance(3600)  # 13:00: an event of 12:10 arrives
    new_store.write("ann", 600, decisions=2)
    asked = pd.DataFrame({"user_id": ["ann"], "event_timestamp": [moment_at(1200)]})
    leaking = feast_of(new_store).get_historical_features(asked, ["user:decisions"]).to_df()
    assert list(leaking["decisions"]) == [2]
    assert new_store.recall("ann", 1200, 3600) == [None, 2]


def test_feasts_dask_store_drops_rows_without_a_feature(new_store: Store) -> None:
    from feast.infra.offline_stores.dask import DaskOfflineStoreConfig

    new_store.write("ann", 0, decisions=1)
    asked = pd.DataFrame(
        {"user_id": ["ann"] * 2, "event_timestamp": [moment_at(60), moment_at(2 * MAX_AGE)]}
    )
    feast = feast_of(new_store)
    object.__setattr__(feast.config, "_offline_store", None)
    feast.config.offline_config = DaskOfflineStoreConfig()
    dask = type(feast)(config=feast.config)
    assert len(dask.get_historical_features(asked, ["user:decisions"]).to_df()) < 2
    assert new_store.recall("ann", 60, 2 * MAX_AGE) == [1, None]


def test_feasts_push_reads_the_registry_each_time_and_we_never(
    new_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast.infra.registry.registry import Registry

    read: list[str] = []
    known = Registry._get_registry_proto

    def counted(self: Any, *given: Any, **more: Any) -> Any:
        if not more.get("allow_cache", False):
            read.append("registry")
        return known(self, *given, **more)

    new_store.write("ann", 0, decisions=1)
    monkeypatch.setattr(Registry, "_get_registry_proto", counted)
    new_store.write("ann", 1, decisions=2)
    new_store.read("ann", 2)
    assert read == []
    feast = feast_of(new_store)
    read.clear()
    feast._precompute_for_push("user", pd.DataFrame())
    assert read


def test_feasts_sqlite_readers_wait_for_writers_and_ours_do_not(tmp_path: Path) -> None:
    store = Store(Settings(state_dir=tmp_path))
    store.write("ann", 0, decisions=1)
    rows: Any = store.writer._rows
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with rows._transaction():
            rows._connection.execute("UPDATE headrace_user SET value_text = ''")
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert entered.wait(30)
        assert store.read("ann", 1) == 1
    finally:
        leave.set()
        thread.join()


def test_every_served_view_is_joined_by_the_moment_its_rows_were_known() -> None:
    from feature_store.definitions import definitions
    from feature_store.views import TABLE

    sources = [
        each.batch_source
        for each in definitions(Settings(), Path("unused"), TABLE)
        if hasattr(each, "batch_source")
    ]
    assert len(sources) == len(VIEWS)
    assert {source.created_timestamp_column for source in sources} == {"created"}


def test_not_a_number_is_unknown_online_and_at_a_past_moment(new_store: Store) -> None:
    new_store.clock.advance(10)
    new_store.write("ann", 0, reward_mean=math.nan)
    assert new_store.read("ann", 20, "user.reward_mean") is None
    assert new_store.recall("ann", 20, name="user.reward_mean") == [None]
