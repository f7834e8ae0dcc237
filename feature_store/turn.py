"""One writer at a time reads rows in order to write them: a file lock with a deadline."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TURN_SECONDS = 2.0
"""A writer that stands still in its turn keeps the others waiting no longer than this."""

POLL_SECONDS = 0.002

_log = logging.getLogger(__name__)


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Hold the lock of a file; who does not get it within `TURN_SECONDS` goes on without."""
    with path.open("w") as file:
        deadline = time.monotonic() + TURN_SECONDS
        while not _got_lock(file.fileno()):
            if time.monotonic() > deadline:
                _log.warning("another writer has kept %s for long; not waiting", path)
                break
            time.sleep(POLL_SECONDS)
        yield


def _got_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
