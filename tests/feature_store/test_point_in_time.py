"""Training reads against a join of our own, in SQL over the rows as they were written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import duckdb
import pandas as pd
import pytest

from feature_store import parts
from feature_store.history import Moment
from feature_store.views import AS_OF, SERVED, FeatureRow, Value, View
from tests.feature_store.stores import MAX_AGE, START, WINDOW, Store

KEYS = [f"key {number}" for number in range(4)]

Written = tuple[FeatureRow, datetime]
"""A row, and when it became known."""


def value_of(kind: type, rng: random.Random) -> Value:
    if rng.random() < 0.2:
        return None
    drawn: dict[type, Value] = {
        int: rng.randrange(1000),
        float: rng.random(),
        str: rng.choice(["answer", "", "ünsafe"]),
    }
    return drawn[kind]


def write_history(store: Store, rng: random.Random, writes: int) -> list[Written]:
    """Write batches on a coarse grid of times, many of them long after their events."""
    found: list[Written] = []
    for _ in range(writes):
        store.clock.advance(rng.choice([0.5, 60.0, 600.0]))
        now = store.clock.now()
        batch = []
        for view in SERVED:
            for key in rng.sample(KEYS, rng.randint(0, 3)):
                delay = rng.choice([0, 0, 60, 600, 1800, 2 * MAX_AGE])
                grid = int((now - START).total_seconds() - delay) // 60 * 60
                values = {name: value_of(kind, rng) for name, kind in view.columns.items()}
                moment = START + timedelta(seconds=grid)
                values[AS_OF] = moment.timestamp()
                batch.append(FeatureRow(view=view.name, key=key, values=values, event_time=moment))
        store.writer.write(batch)
        found += [(row, now) for row in batch]
    return found


JOIN = """
SELECT m.place, arg_max(r.place, (r.event, r.created))
FROM moments m JOIN written r ON r.key = m.key AND r.created <= m.at
    AND r.event <= m.at AND r.event >= m.at - to_seconds($age)
GROUP BY m.place
"""


def as_of(
    written: Sequence[Written], view: View, asked: Sequence[tuple[str, datetime]]
) -> list[dict[str, Value]]:
    """Return what was known of keys at moments: of the rows known by then, the newest event's."""
    rows = [
        (place, row.key, row.event_time, created)
        for place, (row, created) in enumerate(written)
        if row.view == view.name
    ]
    moments = [(place, key, at) for place, (key, at) in enumerate(asked)]
    with duckdb.connect() as database:
        database.register(
            "written", pd.DataFrame(rows, columns=["place", "key", "event", "created"])
        )
        database.register("moments", pd.DataFrame(moments, columns=["place", "key", "at"]))
        found = dict(database.execute(JOIN, {"age": MAX_AGE}).fetchall())

    def value(name: str, place: int, at: datetime) -> Value:
        if place not in found:
            return None
        row = written[found[place]][0]
        is_over = name.startswith("recent_") and at > row.event_time + timedelta(seconds=WINDOW)
        return None if is_over else row.values[name]

    return [
        {f"{view.name}.{name}": value(name, place, at) for name in view.shown}
        for place, (_, at) in enumerate(asked)
    ]


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_past_moment_knows_what_an_independent_join_knows(
    new_store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MERGE_AFTER", 4)  # merged in levels while the history grows
    rng = random.Random(seed)
    written = write_history(new_store, rng, 60)
    end = int((new_store.clock.now() - START).total_seconds())
    moments = [
        Moment(
            user_id=rng.choice([*KEYS, "nobody"]),
            session_id=rng.choice(KEYS),
            policy_version=rng.choice(KEYS),
            topic=rng.choice(KEYS),
            at=START + timedelta(seconds=rng.choice([60.0, 0.5]) * rng.randrange(end // 60 + 90)),
        )
        for _ in range(150)
    ]
    expected: list[dict[str, Value]] = [{} for _ in moments]
    for view in SERVED:
        asked = [(str(getattr(moment, view.join_key)), moment.at) for moment in moments]
        for known, more in zip(expected, as_of(written, view, asked), strict=True):
            known.update(more)
    found = new_store.offline.at(moments)
    differing = [
        (moment, name, row.get(name), value)
        for moment, row, known in zip(moments, found, expected, strict=True)
        for name, value in known.items()
        if row.get(name) != value
    ]
    assert differing == []
    values = [value for row in expected for value in row.values()]
    assert sum(value is not None for value in values) > len(values) // 5


@pytest.mark.parametrize("seed", [3, 4])
def test_the_present_is_the_same_online_and_offline(new_store: Store, seed: int) -> None:
    rng = random.Random(seed)
    write_history(new_store, rng, 20)
    at = new_store.clock.now()
    for key in KEYS:
        online = new_store.online.read(key, key, key, at, key)
        moment = Moment(user_id=key, session_id=key, policy_version=key, topic=key, at=at)
        (offline,) = new_store.offline.at([moment])
        assert {name: value.value for name, value in online.items()} == offline


def test_columns_that_a_row_lacks_are_known_at_a_past_moment_too(new_store: Store) -> None:
    new_store.clock.advance(10)
    new_store.write("ann", 0, decisions=1, reports=7)
    new_store.write("ann", 1, decisions=2)
    new_store.write("ann", 2, reports=None)
    at = (10.5, 11)
    assert new_store.recall("ann", *at, name="user.decisions") == [2, 2]
    assert new_store.recall("ann", *at, name="user.reports") == [None, None]
    new_store.clock.advance(10)
    new_store.write("ann", 3, reports=4)
    assert new_store.recall("ann", 15, 21, name="user.reports") == [None, 4]
    assert new_store.recall("ann", 15, 21) == [2, 2]
