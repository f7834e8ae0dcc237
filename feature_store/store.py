"""Opens the Feast store: applies the definitions once and sets the online store's journal.

Importing this file imports Feast (about four seconds of CPU); other files do so at first use.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from contracts.settings import Settings
from feature_store.parts import ensure_parts
from feature_store.sqlite_rows import SqliteRows
from feature_store.views import VIEWS, View

# Feast imports torch, where installed, for one annotation: 180 MB in every process that serves.
_hidden = sys.modules.setdefault("torch", None)  # type: ignore[arg-type] # None: "not installed"
try:
    from feast import FeatureStore, RepoConfig
    from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig
    from feast.infra.online_stores.helpers import compute_table_id
    from feast.repo_config import RegistryConfig

    from feature_store.definitions import SERVICE, definitions
finally:
    if _hidden is None:
        del sys.modules["torch"]

PROJECT = "headrace"
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


def open_store(settings: Settings) -> FeatureStore:
    """Return a store with all definitions applied; safe when several processes start at once."""
    folder = repository(settings)
    folder.mkdir(parents=True, exist_ok=True)
    for view in VIEWS.values():
        ensure_parts(offline_folder(settings, view.name), view)
    store = FeatureStore(config=_config(settings, folder))
    with _locked(folder / "apply.lock"):
        marker, wanted = folder / "applied", _fingerprint(settings)
        if not marker.exists() or marker.read_text() != wanted:
            store.apply(list(definitions(settings, folder)))
            marker.write_text(wanted)
    if settings.features.online == "sqlite":
        _set_journal(store)
    return store


def service_of(store: FeatureStore) -> Any:
    """Return the feature service of the served views, to be fetched once per process."""
    return store.get_feature_service(SERVICE)


def online_rows(settings: Settings, store: FeatureStore, views: tuple[View, ...]) -> Any:
    """Return the `SqliteRows` of these views, None for an online store of another kind."""
    if settings.features.online != "sqlite":
        return None
    versioned = store.config.registry.enable_online_feature_view_versioning
    tables = {
        view.name: compute_table_id(PROJECT, store.get_feature_view(view.name), versioned)
        for view in views
    }
    return SqliteRows(repository(settings) / "online.db", tables, views)


def _config(settings: Settings, folder: Path) -> RepoConfig:
    registry = settings.features.registry
    online: dict[str, Any] = {"type": "sqlite", "path": str(folder / "online.db")}
    if settings.features.online == "redis":
        redis = f"{REDIS_LIMITS},{settings.features.redis}"  # the last of equal names counts
        online = {"type": "redis", "connection_string": redis}
    return RepoConfig(
        project=PROJECT,
        provider="local",
        registry=RegistryConfig(
            registry_type="sql" if "://" in registry else "file",
            path=registry or str(folder / "registry.db"),
            cache_ttl_seconds=0,  # the definitions change only with the code: never re-read
        ),
        online_store=online,
        offline_store=DuckDBOfflineStoreConfig(),
        entity_key_serialization_version=3,
        repo_path=folder,
    )


def _fingerprint(settings: Settings) -> str:
    """Return what the applied definitions depend on, as one hash."""
    views = {name: [list(view.columns), view.join_key] for name, view in VIEWS.items()}
    parts = [
        views,
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
