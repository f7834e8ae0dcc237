"""Both ends of one feature store, with a clock turned by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from console import store_servers
from contracts.clock import ManualClock
from contracts.settings import Features, Gateway, Settings, Streams
from feature_store import encoding
from feature_store.history import Moment, OfflineReader
from feature_store.reader import OnlineReader
from feature_store.views import FeatureRow, Value
from feature_store.writer import FeatureWriter

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MAX_AGE = 3600.0
WINDOW = 1800.0

_numbers = count()


class Store:
    """One store. ``exact`` says that it orders events of several writers by the microsecond."""

    def __init__(self, settings: Settings, *, exact: bool = True) -> None:
        self.settings, self.exact = settings, exact
        self.clock = ManualClock(START)
        self.writer = FeatureWriter(self.settings, self.clock)
        self.online = OnlineReader(self.settings)
        self.offline = OfflineReader(self.settings)

    @property
    def is_redis(self) -> bool:
        return self.settings.features.online == "redis"

    def another_writer(self, name: str = "another") -> FeatureWriter:
        return FeatureWriter(self.settings, self.clock, name)

    def row(self, key: str, at: float, view: str = "user", **values: Value) -> FeatureRow:
        """Return a row of an event ``at`` seconds after the start."""
        moment = START + timedelta(seconds=at)
        return FeatureRow(view=view, key=key, values=values, event_time=moment)

    def write(self, key: str, at: float, view: str = "user", **values: Value) -> int:
        return self.writer.write([self.row(key, at, view, **values)])

    def read(self, key: str, at: float, name: str = "user.decisions") -> Value:
        now = START + timedelta(seconds=at)
        return self.online.read(key, f"session of {key}", "base", now)[name].value

    def recall(self, key: str, *at: float, name: str = "user.decisions") -> list[Value]:
        moments = [
            Moment(user_id=key, session_id=f"session of {key}", at=START + timedelta(seconds=s))
            for s in at
        ]
        return [row[name] for row in self.offline.at(moments)]


def feast_of(store: Store) -> Any:
    """Return the Feast store of the same settings."""
    from feature_store.store import open_store

    return open_store(store.settings)


def redis_of(store: Store) -> Redis:
    """Return a client of the store's own database."""
    host, _, rest = store.settings.features.redis.partition(":")
    port, _, db = rest.partition(",db=")
    return Redis(host, int(port), int(db))


def settings_of(
    folder: Path, redis: str = "", registry: str = "", max_age: float = MAX_AGE
) -> Settings:
    """Return settings for sqlite, or for a database of its own of a Redis."""
    online = Features(registry=registry, window_seconds=WINDOW)
    if redis:
        address = f"{redis},db={next(_numbers)}"
        online = msgspec.structs.replace(online, online="redis", redis=address)
    gateway = Gateway(feature_max_age_seconds=max_age)
    # So that the maximum age counts, and not how long a reward can be revised.
    streams = Streams(window_seconds=0.1, revision_seconds=0.1, reward={})
    return Settings(state_dir=folder, gateway=gateway, features=online, streams=streams)


def through_feast(settings: Settings) -> Store:
    """Open a store as for a version of Feast whose layout is not known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "FEAST", "another version")
        return Store(settings, exact=False)


def needs(packages: Sequence[str]) -> None:
    """Skip the test when one of these Debian packages is not installed, and say how to get it."""
    lacking = [name for name in packages if name in store_servers.missing_servers()]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed: {store_servers.INSTALL}")
