"""``run/stack.json``: which processes a supervisor runs, for those who look on or end them.

A pid alone proves nothing, since systems reuse them: a process is ours when its start time is the
recorded one too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import psutil
from msgspec import Struct

Phase = Literal["starting", "running", "stopping", "stopped"]
State = Literal["waiting", "starting", "running", "dead", "outside"]


class ProcessEntry(Struct, frozen=True, kw_only=True):
    """One supervised process; ``pid`` 0 when it does not run, or runs ``outside`` the stack."""

    name: str
    state: State
    pid: int = 0
    started: float = 0.0
    port: int | None = None
    restarts: int = 0


class StackFile(Struct, frozen=True, kw_only=True):
    """The whole file. Addresses are those the stack uses, started by it or not."""

    supervisor_pid: int
    supervisor_started: float
    phase: Phase
    kafka: str
    engine: str
    engine_kind: str
    gateway: str
    model: str = ""
    processes: tuple[ProcessEntry, ...]


def stack_path(state_dir: Path) -> Path:
    """Return where the supervisor of a state directory writes."""
    return state_dir / "run" / "stack.json"


def write_stack(state_dir: Path, stack: StackFile) -> None:
    """Write the file atomically."""
    path = stack_path(state_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(stack), indent=2))
    temporary.replace(path)


def read_stack(state_dir: Path) -> StackFile | None:
    """Return the file's content, None when there is none or it cannot be read as one."""
    try:
        return msgspec.json.decode(stack_path(state_dir).read_bytes(), type=StackFile)
    except (FileNotFoundError, UnicodeDecodeError, msgspec.MsgspecError):
        return None


def start_time(pid: int) -> float:
    """Return when a process started (seconds since the epoch), 0 when it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def is_same_process(pid: int, started: float) -> bool:
    """Return whether that very process still runs (a zombie does not)."""
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - started) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def supervisor_runs(stack: StackFile | None) -> bool:
    """Return whether the supervisor that wrote the file is alive."""
    return stack is not None and is_same_process(stack.supervisor_pid, stack.supervisor_started)
