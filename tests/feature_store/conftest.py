"""Every online store and registry that the suite runs on, on servers of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from console.store_servers import postgres_server, redis_server
from tests.feature_store.stores import Store, needs, settings_of, through_feast

STORES = (
    "sqlite",
    "redis",
    "redis, PostgreSQL registry",
    "sqlite through Feast",
    "redis through Feast",
)


@pytest.fixture(scope="session")
def redis_address() -> Iterator[str]:
    needs(["redis-server"])
    with redis_server() as (address, _):
        yield address


@pytest.fixture(scope="session")
def registry_url() -> Iterator[str]:
    needs(["postgresql"])
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of each kind, for all tests of a file: each has keys of its own."""
    kind: str = request.param
    redis = request.getfixturevalue("redis_address") if kind.startswith("redis") else ""
    registry = request.getfixturevalue("registry_url") if "PostgreSQL" in kind else ""
    settings = settings_of(tmp_path_factory.mktemp("features"), redis, registry)
    return through_feast(settings) if kind.endswith("Feast") else Store(settings)


@pytest.fixture(params=("sqlite", "redis"))
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind for one test."""
    redis = request.getfixturevalue("redis_address") if request.param == "redis" else ""
    return Store(settings_of(tmp_path, redis))
