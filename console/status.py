"""How the stack fares: one row per process, from ``stack.json`` and the heartbeats."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from msgspec import Struct

from console.stack_file import ProcessEntry, StackFile, is_same_process, read_stack, supervisor_runs
from console.table import table
from contracts.clock import Clock
from contracts.heartbeat import read_heartbeat


class Row(Struct, frozen=True, kw_only=True):
    """One process: seconds since its start and since its last heartbeat.

    Age and lag are None where the process has no heartbeat (broker and engine never have one).
    """

    process: str
    state: str
    pid: int
    port: int | None
    up_seconds: float | None
    age_seconds: float | None
    lag: int | None
    restarts: int
    counts: dict[str, int]
    note: str


class Status(Struct, frozen=True, kw_only=True):
    """The whole stack; ``phase`` is "down" when no supervisor runs."""

    phase: str
    state_dir: str
    kafka: str = ""
    engine: str = ""
    gateway: str = ""
    processes: tuple[Row, ...] = ()


def status_of(state_dir: Path, clock: Clock) -> Status:
    """Read the state of a stack; a missing file means that it is down."""
    stack = read_stack(state_dir)
    if stack is None:
        return Status(phase="down", state_dir=str(state_dir))
    now = clock.now()
    return Status(
        phase=stack.phase if supervisor_runs(stack) else "down",
        state_dir=str(state_dir),
        kafka=stack.kafka,
        engine=f"{stack.engine_kind} {stack.engine}",
        gateway=stack.gateway,
        processes=tuple(_row(state_dir, entry, now) for entry in stack.processes),
    )


def is_sound(status: Status) -> bool:
    """Return whether every process runs."""
    return status.phase == "running" and all(row.state == "running" for row in status.processes)


def _row(state_dir: Path, entry: ProcessEntry, now: datetime) -> Row:
    beat = read_heartbeat(state_dir, entry.name)
    if beat is not None and beat.pid != entry.pid:
        beat = None
    alive = is_same_process(entry.pid, entry.started)
    return Row(
        process=entry.name,
        state=entry.state if alive or entry.state not in ("running", "starting") else "dead",
        pid=entry.pid if alive else 0,
        port=entry.port,
        up_seconds=max(0.0, now.timestamp() - entry.started) if alive else None,
        age_seconds=beat.age_seconds(now) if beat else None,
        lag=beat.lag if beat else None,
        restarts=entry.restarts,
        counts=beat.counts if beat else {},
        note=beat.note if beat else "",
    )


def status_text(status: Status) -> str:
    """Return the table for people."""
    lines = [f"stack {status.phase} in {status.state_dir}"]
    if status.phase == "down":
        return f"{lines[0]}; start it with 'headrace up'"
    lines.append(f"gateway {status.gateway}  engine {status.engine}  kafka {status.kafka}")
    heads = (
        "process",
        "state",
        "pid",
        "port",
        "up s",
        "beat s",
        "lag",
        "restarts",
        "counts",
        "note",
    )
    rows = [
        (
            row.process,
            row.state,
            row.pid or None,
            row.port,
            None if row.up_seconds is None else round(row.up_seconds),
            None if row.age_seconds is None else round(row.age_seconds, 1),
            row.lag,
            row.restarts,
            " ".join(f"{name}={count}" for name, count in sorted(row.counts.items())),
            row.note,
        )
        for row in status.processes
    ]
    return "\n".join([*lines, table(heads, rows)])


def running_stack(state_dir: Path) -> StackFile | None:
    """Return the stack whose supervisor lives, None when there is none."""
    stack = read_stack(state_dir)
    return stack if supervisor_runs(stack) else None
