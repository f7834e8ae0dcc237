"""Locks on files, never waited for without a deadline: who holds one may stand still for ever."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from contracts.errors import UnavailableError

POLL_SECONDS = 0.002


def got_lock(file: IO[str], kind: int, seconds: float = 0.0) -> bool:
    """Take a lock (``fcntl.LOCK_SH``, ``LOCK_EX``); False when it was not to be had in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True


@contextmanager
def locked(path: Path, kind: int, seconds: float) -> Iterator[None]:
    """Hold the lock of a file, made if it is missing; UnavailableError when it was not to be had in
    time. Who may only read the folder may lock what is there."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)) as file:
        if not got_lock(file, kind, seconds):
            raise UnavailableError(
                f"the feature store's {path} has been held by another process for more than "
                f"{seconds:g} s, which stands still (stopped, or its disk hangs) or has much to "
                "do; 'fuser' with this path names it: let it go on, or end it"
            )
        yield
