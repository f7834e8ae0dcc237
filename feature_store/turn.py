"""One writer at a time reads rows in order to write them: a file lock with a deadline."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_store.file_lock import got_lock

TURN_SECONDS = 2.0
"""A writer that stands still in its turn keeps the others waiting no longer than this."""

_log = logging.getLogger(__name__)


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Hold the lock of a file; who does not get it within `TURN_SECONDS` goes on without."""
    with path.open("w") as file:
        if not got_lock(file, fcntl.LOCK_EX, TURN_SECONDS):
            _log.warning("another writer has kept %s for long; not waiting", path)
        yield
