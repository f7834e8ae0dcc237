"""What holds on every online store and registry: one set of definitions, read online and as of a
past moment."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from contracts.clock import ManualClock
from contracts.events import FeatureValue
from feature_store.history import Moment
from feature_store.views import (
    DECISION,
    SERVED,
    USER,
    VIEWS,
    FeatureRow,
    Value,
    ViewTable,
    served_names,
)
from feature_store.writer import FeatureWriter
from tests.feature_store.stores import MAX_AGE, START, WINDOW, Store, feast_of, settings_of


def test_importing_the_package_does_not_import_feast() -> None:
    code = (
        "import sys, feature_store, feature_store.writer, feature_store.reader, "
        "feature_store.history; sys.exit('feast' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_definitions_apply_and_hold_every_view(store: Store) -> None:
    again = feast_of(store)
    assert {view.name for view in again.list_feature_views()} == VIEWS.keys()
    assert len(served_names()) == sum(len(view.shown) for view in SERVED)


def test_what_became_of_decisions_is_kept_for_the_past_alone(store: Store) -> None:
    of_decisions = {view.name: view for view in feast_of(store).list_feature_views()}["decision"]
    assert not of_decisions.online
    assert of_decisions.batch_source is not None
    row = FeatureRow(view="decision", key="d", values={"risk": 0.5}, event_time=START)
    assert store.writer.write([row]) == 0
    with pytest.raises(ValueError, match="kept offline only"):
        store.writer.latest("decision", ["d"])


def test_a_file_that_once_kept_decisions_online_keeps_them_no_more(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    before = replace(DECISION, online=True)
    with_decisions = ViewTable({**VIEWS, "decision": before}, SERVED)
    writer = FeatureWriter(settings, ManualClock(START), table=with_decisions)
    row = FeatureRow(view="decision", key="d", values={"risk": 0.5}, event_time=START)
    writer.write([row])
    FeatureWriter(settings, ManualClock(START)).write([row])
    with sqlite3.connect(tmp_path / "features" / "online.db") as file:
        found = file.execute("SELECT name FROM sqlite_master WHERE tbl_name LIKE '%decision%'")
        assert found.fetchall() == []


def test_a_store_without_rows_knows_nothing(store: Store) -> None:
    read = store.online.read("nobody", "nowhere", "never", START)
    assert read == {name: FeatureValue(value=None) for name in served_names()}
    assert set(store.recall("nobody", 10.0)) == {None}


def test_a_row_without_values_leaves_those_there_are(store: Store) -> None:
    store.write("leo", 0, decisions=3)
    assert store.write("leo", 60) == 0
    assert store.read("leo", 90) == 3


def test_a_value_is_read_with_its_age(store: Store) -> None:
    store.write("ann", 0, decisions=3, reward_mean=0.5)
    value = store.online.read("ann", "", "base", START + timedelta(seconds=30))["user.reward_mean"]
    assert value.value == 0.5
    assert value.age_seconds == pytest.approx(30, abs=1)


def test_a_value_older_than_the_maximum_age_is_missing_online_and_offline(store: Store) -> None:
    store.write("bob", 0, decisions=3)
    assert store.read("bob", MAX_AGE - 2) == 3
    assert store.read("bob", MAX_AGE + 2) is None
    assert store.recall("bob", MAX_AGE - 2, MAX_AGE + 2) == [3, None]


def test_an_older_event_never_overwrites_a_newer_one_online(store: Store) -> None:
    store.write("cleo", 100, decisions=2)
    assert store.write("cleo", 50, decisions=1) == 1
    assert store.read("cleo", 101) == 2


def test_a_late_event_counts_only_from_the_moment_it_was_written(store: Store) -> None:
    store.clock.advance(200)  # what is written from here on is known from 12:03:20
    store.write("dora", 10, decisions=1)
    store.clock.advance(100)
    store.write("dora", 20, decisions=2)
    assert store.recall("dora", 100, 250, 350) == [None, 1, 2]


def test_in_one_batch_the_newest_row_of_a_key_holds(store: Store) -> None:
    rows = [
        FeatureRow(
            view="user",
            key="eve",
            values={"decisions": number},
            event_time=START + timedelta(seconds=number),
        )
        for number in (3, 5, 4)
    ]
    store.writer.write(rows)
    assert store.read("eve", 10) == 5


def test_columns_that_a_row_lacks_keep_their_values(store: Store) -> None:
    store.write("fay", 0, decisions=1, reports=7)
    store.write("fay", 1, decisions=2)
    assert store.read("fay", 2, "user.reports") == 7


def test_simultaneous_rows_are_all_taken(store: Store) -> None:
    for number in range(3):
        assert store.write("gus", 5, decisions=number) == 0
    assert store.read("gus", 6) == 2


def test_a_writer_that_starts_anew_still_refuses_older_events(store: Store) -> None:
    store.write("hal", 100, decisions=2)
    second = store.another_writer()
    assert second.write([store.row("hal", 0, decisions=1)]) == 1
    assert store.read("hal", 101) == 2


def test_online_and_offline_agree_for_every_served_feature(store: Store) -> None:
    written: dict[str, dict[str, Value]] = {
        "user": {"decisions": 9, "violations": 1, "rewards": 4, "reward_mean": 1.0, "reports": 0},
        "session": {"turns": 2, "last_action": "answer", "last_reward": -0.5},
        "policy_version": {"decisions": 5, "violations": 0, "rewards": 2, "reward_mean": 0.25},
        "topic": {"decisions": 7, "violations": 2, "rewards": 0, "reward_mean": None},
    }
    window = {name: 0.5 for name in USER.shown if name.startswith("recent_")}
    window["recent_decisions"] = 3
    for values in written.values():
        values.update(window)
    keys = {"user": "ida", "session": "s-ida", "policy_version": "v1", "topic": "billing"}
    for view, values in written.items():
        store.write(keys[view], 0, view, **values, as_of=START.timestamp())
    at = max(store.clock.now(), START) + timedelta(seconds=5)
    moment = Moment(user_id="ida", session_id="s-ida", policy_version="v1", topic="billing", at=at)

    def read_both(at: datetime) -> dict[str, Value]:
        online = store.online.read("ida", "s-ida", "v1", at, "billing")
        (offline,) = store.offline.at([msgspec.structs.replace(moment, at=at)])
        assert {name: value.value for name, value in online.items()} == offline
        return offline

    whole = {f"{v}.{f}": value for v, row in written.items() for f, value in row.items()}
    assert read_both(at) == whole
    after_the_window = read_both(START + timedelta(seconds=WINDOW + 1))
    assert after_the_window == {
        name: None if ".recent_" in name else value for name, value in whole.items()
    }
