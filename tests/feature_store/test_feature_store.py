"""The real Feast store: one set of definitions, read online and as of a past moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contracts.clock import ManualClock
from contracts.events import FeatureValue
from contracts.settings import Gateway, Settings
from feature_store.history import Moment, OfflineReader
from feature_store.reader import OnlineReader
from feature_store.store import open_store
from feature_store.views import SERVED, VIEWS, FeatureRow, Value, served_names
from feature_store.writer import FeatureWriter

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MAX_AGE = 3600.0


class Store:
    """Both ends of one store, with a clock turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(state_dir=folder, gateway=Gateway(feature_max_age_seconds=MAX_AGE))
        self.clock = ManualClock(START)
        self.writer = FeatureWriter(self.settings, self.clock)
        self.online = OnlineReader(self.settings)
        self.offline = OfflineReader(self.settings)

    def write(self, key: str, at: float, view: str = "user", **values: Value) -> int:
        """Write a row of an event ``at`` seconds after the start."""
        moment = START + timedelta(seconds=at)
        return self.writer.write([FeatureRow(view=view, key=key, values=values, event_time=moment)])

    def read(self, key: str, at: float, name: str = "user.decisions") -> Value:
        now = START + timedelta(seconds=at)
        return self.online.read(key, f"session of {key}", "base", now)[name].value

    def recall(self, key: str, *at: float, name: str = "user.decisions") -> list[Value]:
        moments = [
            Moment(user_id=key, session_id=f"session of {key}", at=START + timedelta(seconds=s))
            for s in at
        ]
        return [row[name] for row in self.offline.at(moments)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield Store(tmp_path_factory.mktemp("features"))


def test_importing_the_package_does_not_import_feast() -> None:
    code = (
        "import sys, feature_store, feature_store.writer, feature_store.reader, "
        "feature_store.history; sys.exit('feast' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_definitions_apply_and_hold_every_view(store: Store) -> None:
    again = open_store(store.settings)
    assert {view.name for view in again.list_feature_views()} == VIEWS.keys()
    assert len(served_names()) == sum(len(view.features) for view in SERVED)


def test_a_store_without_rows_knows_nothing(store: Store) -> None:
    read = store.online.read("nobody", "nowhere", "never", START)
    assert read == {name: FeatureValue(value=None) for name in served_names()}
    assert set(store.recall("nobody", 10.0)) == {None}


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
    second = FeatureWriter(store.settings, store.clock, "second")
    older = FeatureRow(view="user", key="hal", values={"decisions": 1}, event_time=START)
    assert second.write([older]) == 1
    assert store.read("hal", 101) == 2


def test_online_and_offline_agree_for_every_served_feature(store: Store) -> None:
    written: dict[str, dict[str, Value]] = {
        "user": {"decisions": 9, "violations": 1, "rewards": 4, "reward_mean": 1.0, "reports": 0},
        "session": {"turns": 2, "last_action": "answer", "last_reward": -0.5},
        "policy_version": {"decisions": 5, "violations": 0, "rewards": 2, "reward_mean": 0.25},
    }
    keys = {"user": "ida", "session": "s-ida", "policy_version": "v1"}
    for view, values in written.items():
        store.write(keys[view], 0, view, **values)
    at = max(store.clock.now(), START) + timedelta(seconds=5)
    online = store.online.read("ida", "s-ida", "v1", at)
    moment = Moment(user_id="ida", session_id="s-ida", policy_version="v1", at=at)
    (offline,) = store.offline.at([moment])
    assert {name: value.value for name, value in online.items()} == offline
    assert offline == {f"{v}.{f}": value for v, row in written.items() for f, value in row.items()}


def test_many_small_parts_are_merged_and_nothing_is_lost(store: Store) -> None:
    folder = store.settings.state_dir / "features" / "offline" / "decision"
    for number in range(130):
        store.write(f"d{number}", number, "decision", risk=0.5, violation=0)
    import pyarrow.parquet as pq

    parts = list(folder.glob("*.parquet"))
    assert len(parts) < 10
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 130
