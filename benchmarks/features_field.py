"""The ways of the feature benchmark to write and to read, each a call that is measured.

A row is one string key and 20 features, 5 integers and 15 floats; a read is 30 values of three
entities, as a gateway asks. Keys repeat, so writes change rows that are there.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec import Struct

from contracts.clock import SystemClock
from contracts.settings import Features, Settings
from feature_store.encoding import encoder
from feature_store.reader import OnlineReader
from feature_store.views import FeatureRow, Value, View, ViewTable
from feature_store.writer import FeatureWriter

SEED = 7
ENTITIES = 2000
PUSH_SOURCE = "pushed"
SERVED_KEYS = ("user_id", "session_id", "policy_version")

WRITTEN = View(
    name="written",
    join_key="written_id",
    description="20 features.",
    features={f"feature_{n}": int if n < 5 else float for n in range(20)},
)
READ = tuple(
    View(
        name=f"read_{key}",
        join_key=key,
        description="10 features.",
        features={f"feature_{n}": int if n < 3 else float for n in range(10)},
    )
    for key in SERVED_KEYS
)
TABLE = ViewTable({view.name: view for view in (WRITTEN, *READ)}, READ)


class Contestant(Struct):
    """One way; ``call(n)`` does the n-th call on ``rows`` rows. ``fewer``: calls are divided by."""

    name: str
    call: Callable[[int], object]
    rows: int = 1
    fewer: int = 1
    done: int = 0

    def measure(self, calls: int, server: Callable[[], float]) -> dict[str, float]:
        """Call so many times; return milliseconds per call: CPU, quantiles, the server's CPU."""
        walls = []
        before, cpu = server(), time.process_time()
        for _ in range(calls):
            self.done += 1
            start = time.perf_counter()
            self.call(self.done)
            walls.append(time.perf_counter() - start)
        cpu, served = time.process_time() - cpu, server() - before
        walls.sort()
        return {
            "rows": self.rows,
            "cpu_ms": cpu / calls * 1e3,
            "p50_ms": walls[calls // 2] * 1e3,
            "p99_ms": walls[calls * 99 // 100] * 1e3,
            "server_ms": served / calls * 1e3,
        }


class OpenStore(Struct, frozen=True):
    """Both ends of a store, and Feast's own."""

    name: str
    settings: Settings
    feast: Any
    writer: FeatureWriter
    reader: OnlineReader

    @property
    def is_redis(self) -> bool:
        """Whether it is Redis."""
        return self.settings.features.online == "redis"


def stores(folder: Path, redis: str) -> Iterator[OpenStore]:
    """Open a sqlite and a Redis store."""
    from feature_store.store import open_store

    for features in (Features(), Features(online="redis", redis=f"{redis},socket_timeout=5")):
        settings = Settings(state_dir=folder / features.online, features=features)
        writer = FeatureWriter(settings, SystemClock(), table=TABLE)
        reader = OnlineReader(settings, TABLE)
        rng, now = random.Random(SEED), datetime.now(UTC)
        for view in READ:
            keys = [f"{view.name} {number}" for number in range(ENTITIES)]
            writer.write([_row(view, key, rng, now) for key in keys])
        feast = open_store(settings, TABLE)
        _apply_push(feast, settings)
        yield OpenStore(features.online, settings, feast, writer, reader)


def _apply_push(feast: Any, settings: Settings) -> None:
    """Define what Feast's push writes to: the same columns behind a source of its own."""
    from feast import FeatureView, FileSource, PushSource

    written = feast.get_feature_view(WRITTEN.name)
    path = str(settings.state_dir / "pushed.parquet")
    source = FileSource(name="pushed_file", path=path, timestamp_field="event_timestamp")
    feast.apply(
        FeatureView(
            name="pushed",
            entities=[feast.get_entity(WRITTEN.name)],
            schema=written.schema,
            source=PushSource(name=PUSH_SOURCE, batch_source=source),
        )
    )


def _row(view: View, key: str, rng: random.Random, at: datetime) -> FeatureRow:
    values: dict[str, Value] = {
        name: rng.randrange(1000) if kind is int else rng.random()
        for name, kind in view.features.items()
    }
    return FeatureRow(view=view.name, key=key, values=values, event_time=at)


def writers(store: OpenStore, batch: int) -> list[Contestant]:
    """Return the ways to write a batch; each has keys of its own."""
    rng, start = random.Random(SEED), datetime.now(UTC)
    values = [_row(WRITTEN, "", rng, start).values for _ in range(batch)]

    def rows(way: str, call: int) -> list[FeatureRow]:
        first, moment = call * batch, start + timedelta(milliseconds=call)
        return [
            FeatureRow(
                view=WRITTEN.name,
                key=f"{way} {(first + number) % ENTITIES}",
                values=of_it,
                event_time=moment,
            )
            for number, of_it in enumerate(values)
        ]

    from feature_store.store import feast_rows

    own, through = store.writer._rows, feast_rows(store.feast, (WRITTEN,))
    provider, view = store.feast.provider, store.feast.get_feature_view(WRITTEN.name)

    def feast_batch(call: int) -> None:
        """Do what the notes of Feast advise: protobufs, then the provider's batch."""
        data = [
            (
                through._key(WRITTEN, row.key),
                through._protos(WRITTEN, row.values),
                row.event_time,
                None,
            )
            for row in rows("batch", call)
        ]
        provider.online_write_batch(store.feast.config, view, data, None)

    raw = _raw_redis(store, batch, rows) if store.is_redis else _raw_sqlite(store, batch, rows)
    return [
        Contestant("ours, online", lambda call: own.write(WRITTEN, rows("own", call)), batch),
        Contestant(
            "ours, online and offline", lambda call: store.writer.write(rows("both", call)), batch
        ),
        Contestant("Feast, online_write_batch", feast_batch, batch, fewer=2),
        Contestant("Feast, push", lambda call: _push(store, rows("push", call)), batch, fewer=20),
        raw,
    ]


def _push(store: OpenStore, rows: list[FeatureRow]) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        [
            {WRITTEN.join_key: row.key, "event_timestamp": row.event_time, **row.values}
            for row in rows
        ]
    )
    store.feast.push(PUSH_SOURCE, frame)


def _raw_redis(
    store: OpenStore, batch: int, rows: Callable[[str, int], list[FeatureRow]]
) -> Contestant:
    client = store.feast.provider.online_store._get_client(store.feast.config.online_store)
    encode = {name: encoder(kind) for name, kind in WRITTEN.features.items()}

    def call(number: int) -> None:
        with client.pipeline(transaction=False) as pipe:
            for row in rows("raw", number):
                pipe.hset(row.key, mapping={n: encode[n](v) for n, v in row.values.items()})
            pipe.execute()

    return Contestant("raw Redis, HSET in a pipeline", call, batch)


def _raw_sqlite(
    store: OpenStore, batch: int, rows: Callable[[str, int], list[FeatureRow]]
) -> Contestant:
    connection = sqlite3.connect(store.settings.state_dir / "raw.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE IF NOT EXISTS raw (key TEXT PRIMARY KEY, data TEXT)")

    def call(number: int) -> None:
        data = [(row.key, json.dumps(row.values)) for row in rows("raw", number)]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO raw VALUES (?, ?)", data)
        connection.execute("COMMIT")

    return Contestant("raw sqlite, one JSON text per row", call, batch)


def readers(store: OpenStore) -> list[Contestant]:
    """Return the ways to read 30 values of three entities."""
    from feature_store.store import feast_rows, service_of

    now = datetime.now(UTC)
    through = feast_rows(store.feast, READ)
    service = service_of(store.feast)

    def keys(call: int) -> dict[str, str]:
        return {view.join_key: f"{view.name} {call * 7 % ENTITIES}" for view in READ}

    def ours(call: int) -> object:
        of_it = keys(call)
        return store.reader.read(
            of_it["user_id"], of_it["session_id"], of_it["policy_version"], now
        )

    def feast(call: int) -> object:
        return store.feast.get_online_features(
            features=service, entity_rows=[keys(call)], full_feature_names=True
        ).to_dict()

    assert ours(1) and through.read(keys(1)) == store.reader._rows.read(keys(1))
    return [
        Contestant("ours, with ages", ours),
        Contestant("Feast, get_online_features", feast, fewer=2),
        _raw_read(store, keys),
    ]


def _raw_read(store: OpenStore, keys: Callable[[int], dict[str, str]]) -> Contestant:
    if store.is_redis:
        client = store.feast.provider.online_store._get_client(store.feast.config.online_store)
        client.set("raw", json.dumps({f"feature_{n}": n / 7 for n in range(30)}))
        return Contestant(
            "raw Redis, GET of one JSON text", lambda _: json.loads(client.get("raw"))
        )
    connection = sqlite3.connect(store.settings.state_dir / "raw.db")
    connection.execute(
        "INSERT OR REPLACE INTO raw VALUES ('read', ?)",
        [json.dumps({f"feature_{n}": n / 7 for n in range(30)})],
    )
    connection.commit()
    select = "SELECT data FROM raw WHERE key = 'read'"
    return Contestant(
        "raw sqlite, one JSON text", lambda _: json.loads(connection.execute(select).fetchone()[0])
    )
