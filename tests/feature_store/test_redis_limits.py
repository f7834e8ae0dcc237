"""A Redis that is silent or away does not hold up a request, and is used again when it returns."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisGoneError

from console.store_servers import redis_server
from contracts.settings import Features, Settings
from feature_store.reader import FeatureReadError, OnlineReader
from feature_store.store import open_store
from tests.feature_store.stores import START, Store, needs, settings_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server whose connections the kernel takes and nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def with_redis(folder: Path, server: socket.socket, more: str = "") -> Settings:
    address = f"127.0.0.1:{server.getsockname()[1]}{more}"
    return Settings(state_dir=folder, features=Features(online="redis", redis=address))


def test_a_silent_redis_is_given_up_after_one_try(tmp_path: Path, silent: socket.socket) -> None:
    with pytest.raises(FeatureReadError, match="Timeout"):
        OnlineReader(with_redis(tmp_path, silent))
    first, _ = silent.accept()
    first.close()
    with pytest.raises(BlockingIOError):
        silent.accept()


def test_the_limits_of_the_settings_win(tmp_path: Path, silent: socket.socket) -> None:
    settings = with_redis(tmp_path, silent, ",socket_timeout=2.5,db=3")
    store: Any = open_store(settings)
    # Feast shows nowhere else what it made of the text.
    client = store.provider.online_store._get_client(store.config.online_store)
    found = client.connection_pool.connection_kwargs
    limits = (found["socket_timeout"], found["socket_connect_timeout"], found["db"])
    assert limits == (2.5, 0.05, 3)


def test_a_redis_that_went_away_fails_at_once_and_is_used_again(tmp_path: Path) -> None:
    needs(["redis-server"])
    with redis_server() as (address, _):
        store = Store(settings_of(tmp_path, address))
        store.write("ann", 1, decisions=1)
        assert store.read("ann", 2) == 1
    with pytest.raises(FeatureReadError, match=r"refused|closed|reset"):
        store.online.read("ann", "", "base", START)
    with pytest.raises(RedisGoneError):
        store.write("ann", 2, decisions=2)
    with redis_server(int(address.rpartition(":")[2])):  # empty, and without the script
        assert store.read("ann", 2) is None
        assert store.write("ann", 3, decisions=3) == 0
        assert store.read("ann", 4) == 3
