"""Reader and writer take any table of views, also one that has grown since rows were written."""

from __future__ import annotations

from datetime import timedelta

from msgspec.structs import replace

from feature_store.history import Moment, OfflineReader
from feature_store.reader import OnlineReader
from feature_store.views import SERVED, USER, VIEWS, FeatureRow, View, ViewTable
from feature_store.writer import FeatureWriter
from tests.feature_store.stores import START, Store

GROWN = replace(USER, features={**USER.features, "mood": str, "weight": float})
NEW = View(
    name="habit",
    join_key="user_id",
    description="A second view of one entity.",
    features={"answers": int},
    state={"seen": str},
)
MORE = ViewTable(
    {**VIEWS, "user": GROWN, "habit": NEW},
    (GROWN, *(view for view in SERVED if view.name != "user"), NEW),
)


def test_a_table_that_grew_reads_what_was_written_and_takes_what_is_new(new_store: Store) -> None:
    new_store.clock.advance(10)
    new_store.write("ann", 0, decisions=4)
    settings, clock = new_store.settings, new_store.clock
    writer = FeatureWriter(settings, clock, "grown", MORE)
    online, offline = OnlineReader(settings, MORE), OfflineReader(settings, MORE)
    at = START + timedelta(seconds=20)
    before = online.read("ann", "", "base", at)
    assert (before["user.decisions"].value, before["user.mood"].value) == (4, None)
    clock.advance(5)
    at_one = START + timedelta(seconds=1)
    written = writer.write(
        [
            FeatureRow(view="user", key="ann", values={"mood": "calm"}, event_time=at_one),
            FeatureRow(view="habit", key="ann", values={"answers": 2}, event_time=at_one),
        ]
    )
    assert written == 0
    after = online.read("ann", "", "base", at)
    names = ("user.decisions", "user.mood", "user.weight", "habit.answers")
    assert [after[name].value for name in names] == [4, "calm", None, 2]
    (row,) = offline.at([Moment(user_id="ann", session_id="", at=at)])
    assert [row[name] for name in names] == [4, "calm", None, 2]
    assert row.keys() == after.keys()
    assert writer.latest("habit", ["ann", "bob"])["ann"][0]["answers"] == 2
    assert new_store.read("ann", 20) == 4  # a process that knows the old table goes on
