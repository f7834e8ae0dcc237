"""Opens the Feast store: applies the definitions once and sets the online store's journal.

Importing this file imports Feast (about four seconds of CPU); other files do so at first use.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterable
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import msgspec

from contracts.clock import Clock
from contracts.settings import Settings
from feature_store import encoding
from feature_store.feast_rows import FeastRows
from feature_store.file_lock import locked
from feature_store.parts import adapt_parts, ensure_parts
from feature_store.redis_rows import RedisRows
from feature_store.rows import ReadableRows, WritableRows
from feature_store.sqlite_rows import SqliteRows
from feature_store.sqlite_writes import SqliteWrites
from feature_store.views import TABLE, View, ViewTable, kept_online_seconds

# Feast imports torch, where installed, for one annotation: 180 MB in every process that serves.
_hidden = sys.modules.setdefault("torch", None)  # type: ignore[arg-type] # None: "not installed"
try:
    import feast
    from feast import FeatureStore, RepoConfig
    from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig
    from feast.infra.online_stores.helpers import compute_table_id, compute_versioned_name

    from feature_store.definitions import SERVICE, definitions
finally:
    if _hidden is None:
        del sys.modules["torch"]

PROJECT = "headrace"
APPLY_SECONDS = 30.0
"""How long a start waits for another process to apply the definitions: seconds on a busy machine.

Where views have changed, old parts are written anew meanwhile, which may take longer; the gateway
tries again by itself, a worker is started again, and the learner asks again with its next batch.
"""

REDIS_LIMITS = "socket_timeout=0.05,socket_connect_timeout=0.05,retry=null"
"""A request waits for its features no longer than this, in seconds.

The client's own retries sleep for seconds between tries; null is read as None, no retry.
"""


def repository(settings: Settings) -> Path:
    """Return the folder that holds registry, sqlite file and offline parts."""
    return (settings.state_dir / "features").resolve()


def offline_folder(settings: Settings, view: str) -> Path:
    """Return the folder of a view's immutable parquet parts."""
    return repository(settings) / "offline" / view


def open_store(settings: Settings, table: ViewTable = TABLE) -> FeatureStore:
    """Return a store with all definitions applied; safe when several processes start at once.

    UnavailableError when another process applies them, or reads parts, for too long.
    """
    folder = repository(settings)
    folder.mkdir(parents=True, exist_ok=True)
    for view in table.views.values():
        ensure_parts(offline_folder(settings, view.name), view)
    store = FeatureStore(config=_config(settings, folder))
    with locked(folder / "apply.lock", fcntl.LOCK_EX, APPLY_SECONDS):
        marker, wanted = folder / "applied", _fingerprint(settings, table)
        if not marker.exists() or marker.read_text() != wanted:
            store.apply(list(definitions(settings, folder, table)))
            for view in table.views.values():
                adapt_parts(offline_folder(settings, view.name), view)
            marker.write_text(wanted)
    if settings.features.online == "sqlite":
        _drop_second_index(store, table)
        _drop_offline_views(store, table)
        _set_journal(store)
    return store


def service_of(store: FeatureStore) -> Any:
    """Return the feature service of the served views, to be fetched once per process."""
    return store.get_feature_service(SERVICE)


def readable_rows(settings: Settings, store: FeatureStore, views: tuple[View, ...]) -> ReadableRows:
    """Return the rows of views, read in the shortest way known of this store and Feast."""
    if feast.__version__ != encoding.FEAST:
        return feast_rows(store, views)
    if settings.features.online == "redis":
        return _redis_rows(settings, store, views)
    return SqliteRows(_sqlite_file(settings), _stored_as(store, views, table=True), views)


def writable_rows(
    settings: Settings, store: FeatureStore, clock: Clock, views: tuple[View, ...]
) -> WritableRows:
    """Return the rows of views, written in the shortest way known likewise."""
    if feast.__version__ != encoding.FEAST:
        return feast_rows(store, views)
    if settings.features.online == "redis":
        return _redis_rows(settings, store, views)
    tables = _stored_as(store, views, table=True)
    return SqliteWrites(_sqlite_file(settings), tables, views, clock)


def feast_rows(store: FeatureStore, views: Iterable[View]) -> FeastRows:
    """Return the rows of views, read and written through Feast itself."""
    return FeastRows(store, service_of(store), views)


def _redis_rows(settings: Settings, store: FeatureStore, views: tuple[View, ...]) -> RedisRows:
    provider: Any = store.provider
    client = provider.online_store._get_client(store.config.online_store)
    keep = kept_online_seconds(settings)
    return RedisRows(client, PROJECT, _stored_as(store, views, table=False), views, keep)


def _stored_as(store: FeatureStore, views: Iterable[View], *, table: bool) -> dict[str, str]:
    """Return the name that each view's rows are stored under, or of their table."""
    versioned = store.config.registry.enable_online_feature_view_versioning
    defined = {view.name: store.get_feature_view(view.name) for view in views}
    if table:
        return {name: compute_table_id(PROJECT, of, versioned) for name, of in defined.items()}
    return {name: compute_versioned_name(of, versioned) for name, of in defined.items()}


def _sqlite_file(settings: Settings) -> Path:
    return repository(settings) / "online.db"


def _config(settings: Settings, folder: Path) -> RepoConfig:
    registry = settings.features.registry
    online: dict[str, Any] = {"type": "sqlite", "path": str(folder / "online.db")}
    if settings.features.online == "redis":
        redis = f"{REDIS_LIMITS},{settings.features.redis}"  # the last of equal names counts
        keep = ceil(kept_online_seconds(settings))
        online = {"type": "redis", "connection_string": redis, "key_ttl_seconds": keep}
    return RepoConfig(
        project=PROJECT,
        provider="local",
        registry={  # a dictionary: then Feast takes the settings class of the type
            "registry_type": "sql" if "://" in registry else "file",
            "path": registry or str(folder / "registry.db"),
            "cache_ttl_seconds": 0,  # the definitions change only with the code: never re-read
        },
        online_store=online,
        offline_store=DuckDBOfflineStoreConfig(),
        entity_key_serialization_version=3,
        repo_path=folder,
    )


def _fingerprint(settings: Settings, table: ViewTable) -> str:
    """Return what the applied definitions depend on, as one hash."""
    parts = [
        [
            (
                name,
                of.join_key,
                [(column, kind.__name__) for column, kind in of.columns.items()],
                of.online,
            )
            for name, of in table.views.items()
        ],
        [(view.name, list(view.features)) for view in table.served],
        settings.features.online,
        settings.features.registry,
        settings.gateway.feature_max_age_seconds,
        str(repository(settings)),
    ]
    return sha256(msgspec.json.encode(parts)).hexdigest()


def _set_journal(store: FeatureStore) -> None:
    """Let readers and one writer work at once: Feast has no option for either pragma."""
    provider: Any = store.provider
    connection = provider.online_store._get_conn(store.config)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _drop_second_index(store: FeatureStore, table: ViewTable) -> None:
    """Drop Feast's index of keys: the primary key begins with them, and each value paid for both.

    It was a quarter of a write.
    """
    provider: Any = store.provider
    connection = provider.online_store._get_conn(store.config)
    for name in _stored_as(store, table.online, table=True).values():
        connection.execute(f'DROP INDEX IF EXISTS "{name}_ek"')


def _drop_offline_views(store: FeatureStore, table: ViewTable) -> None:
    """Drop the rows of views that were kept online once: nobody reads them, and nothing else would
    remove them."""
    provider: Any = store.provider
    connection = provider.online_store._get_conn(store.config)
    offline = [view for view in table.views.values() if not view.online]
    for name in _stored_as(store, offline, table=True).values():
        for of_view in (name, f"{name}_newest"):
            connection.execute(f'DROP TABLE IF EXISTS "{of_view}"')
