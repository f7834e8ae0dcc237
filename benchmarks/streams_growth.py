"""Does an event cost more as history grows? ``python -m benchmarks.streams_growth [--events N]``.

The worker's flow and counts run without a broker over a simulated clock: two partitions' worth of
events a few milliseconds apart, sessions that end and sessions that come back for ever, corrections
of what was forgotten. The feature store is a file, so that memory is that of the worker's state.
Prints CPU per event, without and of that store, and resident memory after 10^4 to 10^6 events.
"""

from __future__ import annotations

import argparse
import gc
import random
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import psutil

from benchmarks.streams_field import settings_in
from benchmarks.streams_load import SOURCE, interaction
from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import ManualClock
from contracts.codec import Record, encode
from contracts.events import Decision, Feedback
from contracts.ids import NewId, uuid7_ids
from contracts.settings import Kafka, Settings
from contracts.topics import DECISIONS, FEEDBACK
from feature_store.views import FeatureRow, Value
from streams.__main__ import GC_THRESHOLD
from streams.flow import Flow
from streams.session import Index
from streams.step import Step
from streams.tally import Tally

WINDOW_SECONDS = 5.0
APART = timedelta(milliseconds=5)
BATCH = 400
TURNS, REGULARS, REGULAR_EVERY = 3, 200, 20
CORRECTED_EVERY, CORRECTED_AFTER = 100, 2_000
"""One interaction in so many is corrected so many interactions later: twice the window."""

KEPT = 3_000
"""Records of each topic that can be read again."""

POINTS = (10_000, 100_000, 500_000, 1_000_000, 2_000_000)
SHARE = 0.4
"""Of the events up to a point, the last ones, over which the cost of one is taken."""


class FileStore:
    """The newest row per key, in a file; ``seconds`` is the CPU time that it took so far."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self.seconds = 0.0
        for line in ("journal_mode = off", "synchronous = off", "cache_size = -8000"):
            self._connection.execute(f"PRAGMA {line}")
        self._connection.execute("CREATE TABLE rows (place TEXT PRIMARY KEY, row BLOB)")

    def latest(
        self, view: str, keys: Sequence[str]
    ) -> dict[str, tuple[dict[str, Value], datetime]]:
        """Return the values and event time of each key that is there."""
        before = time.process_time()
        rows = ((key, self._row(f"{view}/{key}")) for key in keys)
        found = {key: (row.values, row.event_time) for key, row in rows if row is not None}
        self.seconds += time.process_time() - before
        return found

    def write(self, rows: Sequence[FeatureRow]) -> None:
        """Write rows; columns that a row does not have keep their values."""
        before = time.process_time()
        self._connection.execute("BEGIN")
        for row in rows:
            if row.view == "decision":
                continue  # never read by the worker
            place = f"{row.view}/{row.key}"
            self._connection.execute(
                "INSERT OR REPLACE INTO rows VALUES (?, ?)", (place, msgspec.json.encode(row))
            )
        self._connection.execute("COMMIT")
        self.seconds += time.process_time() - before

    def _row(self, place: str) -> FeatureRow | None:
        found = self._connection.execute("SELECT row FROM rows WHERE place = ?", (place,))
        row = found.fetchone()
        return msgspec.json.decode(row[0], type=FeatureRow) if row else None


class Worker:
    """What `streams.worker.Worker` does around the flow, over one partition held in memory."""

    def __init__(
        self, settings: Settings, store: FileStore, clock: ManualClock, ids: NewId
    ) -> None:
        self.flow = Flow(settings, AuditChain("growth", clock, ids), source=SOURCE)
        self.flow.assign([0])
        self._tally, self._store, self._clock = Tally(store.latest), store, clock
        self._ends = {DECISIONS.name: 0, FEEDBACK.name: 0}
        self._log: dict[tuple[str, int], Received] = {}

    def arrive(self, record: Record) -> Received:
        """Append a record to the log, which forgets what is old."""
        name, offset = record.topic.name, self._ends[record.topic.name]
        self._ends[name] += 1
        received = Received(record.topic, 0, offset, record.key, record.value, record.headers)
        self._log[name, offset] = received
        self._log.pop((name, offset - KEPT), None)
        return received

    def take(self, records: list[Received]) -> None:
        """Take a batch that ends where the log ends, and close what is due."""
        now, flow = self._clock.now(), self.flow
        rows = self._store.latest("session", list(flow.unknown_sessions(records)))
        texts = {key: values.get("log") for key, (values, _) in rows.items()}
        indexes = {
            key: msgspec.json.decode(text, type=Index)
            for key, text in texts.items()
            if isinstance(text, str)
        }
        for wanted in flow.wanted(records, indexes):
            places = [(DECISIONS.name, n) for n in wanted.decisions]
            places += [(FEEDBACK.name, n) for n in wanted.feedback]
            again = [self._log[place] for place in places if place in self._log]
            flow.recall(wanted, again, now)
        step = flow.read(records, now)
        partition = flow.partitions[0]
        for topic, reach in ((DECISIONS, partition.decisions), (FEEDBACK, partition.feedback)):
            reach.see(self._ends[topic.name], 0, now)
        while step:
            self._finish(step)
            step = flow.close(now, BATCH)

    def _finish(self, step: Step) -> None:
        self.flow.settle(step)
        if step.facts:
            self._store.write(self._tally.rows(step.facts))
            self._tally.written()


def growth(events: int, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Return the figures at each of the `POINTS` up to a number of events."""
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    new_id = uuid7_ids(clock, random.Random(seed))
    settings = settings_in(folder, Kafka(), window_seconds=WINDOW_SECONDS)
    store = FileStore(folder / "store")
    worker = Worker(settings, store, clock, new_id)
    gc.collect()
    gc.freeze()  # as the worker does
    gc.set_threshold(*GC_THRESHOLD)
    source, found = _records(clock, new_id), []
    points = iter([point for point in POINTS if point <= events])
    taken, wanted, spent, stored, since = 0, next(points), 0.0, 0.0, 0
    while wanted:
        batch = [worker.arrive(next(source)) for _ in range(min(BATCH, wanted - taken))]
        before, of_store = time.process_time(), store.seconds
        worker.take(batch)
        taken += len(batch)
        if taken > wanted * (1 - SHARE):
            spent, since = spent + time.process_time() - before, since + len(batch)
            stored += store.seconds - of_store
        if taken == wanted:
            found.append(
                {
                    "events": taken,
                    "cpu_us": round(1e6 * (spent - stored) / since, 1),
                    "store_us": round(1e6 * stored / since, 1),
                    "resident_mb": round(psutil.Process().memory_info().rss / 1e6),
                    "open": worker.flow.open_decisions,
                    "sessions": len(worker.flow.partitions[0].sessions),
                    "revisions": worker.flow.counts["revisions"],
                }
            )
            print(found[-1], file=sys.stderr)
            wanted, spent, stored, since = next(points, 0), 0.0, 0.0, 0
    return found


def _records(clock: ManualClock, new_id: NewId) -> Iterator[Record]:
    """Yield the records of interactions for ever, moving the clock on."""
    served: dict[int, Decision] = {}
    number = 0
    while True:
        is_regular = number % REGULAR_EVERY == 0
        place = number // REGULAR_EVERY % REGULARS if is_regular else number // TURNS
        session = f"{'regular' if is_regular else 'session'}-{place}"
        decision, rating = interaction(clock.now(), new_id, number, session)
        yield decision
        yield rating
        if number % CORRECTED_EVERY == 1:
            served[number] = msgspec.json.decode(decision.value, type=Decision)
        corrected = served.pop(number - CORRECTED_AFTER, None)
        if corrected is not None:
            yield encode(FEEDBACK, _correction(corrected, clock, new_id), source=SOURCE)
        clock.advance(APART.total_seconds())
        number += 1


def _correction(decision: Decision, clock: ManualClock, new_id: NewId) -> Feedback:
    answer = msgspec.structs.replace(decision.answer, content=f"Better: {decision.text}")
    return Feedback(
        id=new_id(),
        time=clock.now(),
        decision_id=decision.id,
        session_id=decision.session_id,
        user_id=decision.user_id,
        kind="correction",
        correction=answer,
    )


def table(found: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    names = ("events of history", "CPU us per event", "of the store", "resident MB")
    rows = [_row((*names, "open decisions", "sessions in memory", "revisions so far"))]
    rows.append(_row(["---"] * 7))
    for at in found:
        cells = (f"{at['events']:,}", f"{at['cpu_us']:.0f}", f"{at['store_us']:.0f}")
        rows.append(_row((*cells, at["resident_mb"], at["open"], at["sessions"], at["revisions"])))
    return "\n".join(rows)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams_growth", description=__doc__
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        print(table(growth(options.events, Path(folder), options.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
