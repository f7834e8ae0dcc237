"""A process that stands still with a lock of the store holds nobody up for long."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest

from contracts.errors import UnavailableError
from feature_store import parts
from feature_store.parts import (
    MERGE_AFTER,
    MERGING,
    READING,
    PartFolder,
    adapt_parts,
    ensure_parts,
    unchanged_parts,
)
from feature_store.views import FeatureRow, View
from tests.feature_store.stores import settings_of
from tests.until import until

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
VIEW = View(name="user", join_key="user_id", description="", features={"decisions": int})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(parts, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(parts, "MERGE_SECONDS", 0.05)
    ensure_parts(tmp_path, VIEW)
    return tmp_path


@contextmanager
def held(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock as another process would, which stands still meanwhile."""
    with path.open("a") as file:
        fcntl.flock(file, kind)
        yield


def refusal(work: Callable[[], object]) -> str:
    """Return what the error says that work ends with, in time."""
    said: list[str] = []

    def run() -> None:
        try:
            work()
        except UnavailableError as error:
            said.append(str(error))

    thread = Thread(target=run, daemon=True)
    thread.start()
    until("the end of a wait for a lock", lambda: not thread.is_alive(), 60.0)
    return "".join(said)


def read(folder: Path) -> None:
    with unchanged_parts([folder]):
        pass


def test_reading_parts_gives_up_on_a_merge_that_stands_still(folder: Path) -> None:
    with held(folder / READING):
        said = refusal(lambda: read(folder))
    assert str(folder / READING) in said
    assert "more than 0.05 s" in said
    assert "fuser" in said
    read(folder)


@pytest.mark.parametrize(("lock", "kind"), [(MERGING, fcntl.LOCK_EX), (READING, fcntl.LOCK_SH)])
def test_adapting_parts_gives_up_on_who_merges_or_reads_for_ever(
    folder: Path, lock: str, kind: int
) -> None:
    with held(folder / lock, kind):
        assert str(folder / lock) in refusal(lambda: adapt_parts(folder, VIEW))
    assert adapt_parts(folder, VIEW) == 0


def test_a_write_gives_up_on_a_merge_that_stands_still_and_leaves_the_parts_to_a_later_one(
    folder: Path,
) -> None:
    ours = PartFolder(folder, VIEW, "writer")

    def write(count: int) -> None:
        for number in range(count):
            row = FeatureRow(view="user", key="ann", values={"decisions": number}, event_time=NOON)
            ours.write([row], NOON)

    with held(folder / MERGING):
        thread = Thread(target=write, args=(2 * MERGE_AFTER,), daemon=True)
        thread.start()
        until("the writes", lambda: not thread.is_alive(), 60.0)
        assert ours.remove_before(NOON) == 0
    assert len(list(folder.glob("*-L0.parquet"))) == 2 * MERGE_AFTER
    write(MERGE_AFTER)
    assert len(list(folder.glob("*-L0.parquet"))) < 2 * MERGE_AFTER


def test_opening_gives_up_on_who_applies_the_definitions_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feature_store import store

    monkeypatch.setattr(store, "APPLY_SECONDS", 0.05)
    settings = settings_of(tmp_path)
    lock = store.repository(settings) / "apply.lock"
    lock.parent.mkdir(parents=True)
    with held(lock):
        assert str(lock) in refusal(lambda: store.open_store(settings))
    store.open_store(settings)
