"""Whatever the order in which writers come, the newest event of a key holds online."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from feature_store.views import FeatureRow, Value
from feature_store.writer import FeatureWriter
from tests.feature_store.stores import START, Store

SEED = 7


def history(name: str, rng: random.Random, step: float, rows: int = 120) -> list[FeatureRow]:
    """Rows of a few keys in random order, some in part, no two of a key at one time."""
    times = {f"{name} {number}": list(range(60)) for number in range(5)}
    found = []
    for number in range(rows):
        key = rng.choice([key for key, left in times.items() if left])
        at = times[key].pop(rng.randrange(len(times[key]))) * step
        values: dict[str, Value] = {"decisions": number, "reports": rng.randrange(9), "counted": ""}
        if rng.random() < 0.3:
            del values["reports"]
        moment = START + timedelta(seconds=at)
        found.append(FeatureRow(view="user", key=key, values=values, event_time=moment))
    return found


def newest(batches: Sequence[Sequence[FeatureRow]]) -> tuple[dict[str, FeatureRow], int]:
    """Return what holds of each key, told from the rows alone, and how many came too late."""
    holds: dict[str, FeatureRow] = {}
    late = 0
    for batch in batches:
        for row in sorted(batch, key=lambda row: row.event_time):
            known = holds.get(row.key)
            if known is None:
                holds[row.key] = row
            elif row.event_time < known.event_time:
                late += 1
            else:
                values = {**known.values, **row.values}
                holds[row.key] = store_row(row, values)
    return holds, late


def store_row(row: FeatureRow, values: dict[str, Value]) -> FeatureRow:
    return FeatureRow(view=row.view, key=row.key, values=values, event_time=row.event_time)


def cut(rows: Sequence[FeatureRow], rng: random.Random) -> list[list[FeatureRow]]:
    found, rest = [], list(rows)
    while rest:
        size = rng.randint(1, 12)
        found.append(rest[:size])
        rest = rest[size:]
    return found


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
def test_a_random_history_leaves_the_newest_row_of_each_key(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    # Feast's sqlite keeps whole seconds and Feast's order is one process's: there, one writer.
    step = 1e-6 if store.exact else 2.0
    taking = [store.writer, store.another_writer()] if store.exact else [store.writer]
    batches = cut(history(f"random {seed}", rng, step), rng)
    counted = sum(rng.choice(taking).write(batch) for batch in batches)
    holds, late = newest(batches)
    assert counted == late > 0
    for key, (values, moment) in store.writer.latest("user", list(holds)).items():
        known = holds.pop(key)
        assert {name: values.get(name) for name in known.values} == known.values
        if store.exact:
            assert moment == known.event_time
    assert not holds


def test_an_event_a_microsecond_older_is_late_and_one_of_the_same_time_is_not(
    new_store: Store,
) -> None:
    second = new_store.another_writer()
    assert new_store.write("ann", 1, decisions=1) == 0
    assert second.write([new_store.row("ann", 1 - 1e-6, decisions=2)]) == 1
    assert second.write([new_store.row("ann", 1, decisions=3)]) == 0
    assert new_store.write("ann", 1, decisions=4) == 0
    assert new_store.read("ann", 2) == 4


def test_writers_at_once_leave_the_newest_row(new_store: Store) -> None:
    rng = random.Random(SEED)
    rows = [new_store.row(f"key {n % 20}", n * 1e-3, decisions=n) for n in range(2000)]
    rng.shuffle(rows)
    writers = [new_store.another_writer(f"writer {number}") for number in range(4)]
    shares = [cut(rows[number::4], rng) for number in range(4)]

    def work(writer: FeatureWriter, batches: list[list[FeatureRow]]) -> int:
        return sum(writer.write(batch) for batch in batches)

    with ThreadPoolExecutor(4) as pool:
        late = sum(pool.map(work, writers, shares))
    assert 0 < late < len(rows)
    found = new_store.writer.latest("user", [f"key {n}" for n in range(20)])
    assert {key: values["decisions"] for key, (values, _) in found.items()} == {
        f"key {n % 20}": n for n in range(1980, 2000)
    }
    assert found["key 0"][1] == START + timedelta(seconds=1.98)
