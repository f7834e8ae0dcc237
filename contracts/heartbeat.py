"""Heartbeats: each process says once a second, in a small file, that it lives and how it fares.

The local stack, ``headrace status`` and container health checks read these files; nothing else
depends on them.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.clock import Clock
from contracts.codec import to_json

FRESH_SECONDS = 10.0


class Heartbeat(Struct, frozen=True, kw_only=True):
    """One process at one moment. ``lag`` is the work that waits for it, most often records."""

    process: str
    pid: int
    time: datetime
    ready: bool
    lag: int | None = None
    counts: dict[str, int] = {}
    note: str = ""

    def age_seconds(self, now: datetime) -> float:
        """Return the seconds since this heartbeat."""
        return (now - self.time).total_seconds()


def heartbeat_path(state_dir: Path, process: str) -> Path:
    """Return where a process writes its heartbeat."""
    return state_dir / "run" / f"{process}.json"


def beat(
    state_dir: Path,
    process: str,
    clock: Clock,
    *,
    ready: bool,
    lag: int | None = None,
    counts: dict[str, int] | None = None,
    note: str = "",
) -> None:
    """Write the heartbeat of this process, atomically."""
    state = Heartbeat(
        process=process,
        pid=os.getpid(),
        time=clock.now(),
        ready=ready,
        lag=lag,
        counts=counts or {},
        note=note,
    )
    write_heartbeat(state_dir, state)


def write_heartbeat(state_dir: Path, state: Heartbeat) -> None:
    """Write a heartbeat, atomically; for who beats on behalf of another."""
    path = heartbeat_path(state_dir, state.process)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(to_json(state))
    temporary.replace(path)


def read_heartbeat(state_dir: Path, process: str) -> Heartbeat | None:
    """Return the last heartbeat of a process, None when it never wrote one that can be read."""
    try:
        return msgspec.json.decode(heartbeat_path(state_dir, process).read_bytes(), type=Heartbeat)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
