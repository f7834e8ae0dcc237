"""How the stack fares: one row per process, from ``stack.json`` and the heartbeats."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from msgspec import Struct

from console.programs import ENGINE_SECONDS
from console.stack_file import ProcessEntry, StackFile, is_same_process, read_stack, supervisor_runs
from console.table import table
from contracts.clock import Clock
from contracts.heartbeat import FRESH_SECONDS, Heartbeat, read_heartbeat

FIRST_BEAT_SECONDS = ENGINE_SECONDS
"""No program may take longer until it is ready, and it beats before."""


class Row(Struct, frozen=True, kw_only=True):
    """One process: seconds since its start and since its last heartbeat, the work that waits.

    The supervisor beats for servers that do not: then the age is that of the last answer. Where age
    or lag is None the note says why. ``state`` is "silent" for a process that is up but has not
    been heard of for a while, and for a server outside the stack that has not answered.
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
    """Return whether every process runs and every server outside the stack answers."""
    sound = ("running", "outside")
    return status.phase == "running" and all(row.state in sound for row in status.processes)


def _row(state_dir: Path, entry: ProcessEntry, now: datetime) -> Row:
    beat = read_heartbeat(state_dir, entry.name)
    if beat is not None and beat.pid != entry.pid:
        beat = None
    alive = is_same_process(entry.pid, entry.started)
    age = beat.age_seconds(now) if beat else None
    up = max(0.0, now.timestamp() - entry.started) if alive else None
    return Row(
        process=entry.name,
        state=_state(entry, up, age),
        pid=entry.pid if alive else 0,
        port=entry.port,
        up_seconds=up,
        age_seconds=age,
        lag=beat.lag if beat else None,
        restarts=entry.restarts,
        counts=beat.counts if beat else {},
        note=_note(beat),
    )


def _state(entry: ProcessEntry, up: float | None, age: float | None) -> str:
    heard = age is not None and age <= FRESH_SECONDS
    if entry.state == "outside":
        return "outside" if heard else "silent"
    if entry.state not in ("running", "starting"):
        return entry.state
    if up is None:
        return "dead"
    young = age is None and up <= FIRST_BEAT_SECONDS
    return entry.state if heard or young else "silent"


def _note(beat: Heartbeat | None) -> str:
    if beat is None:
        return "no heartbeat yet"
    return beat.note or ("" if beat.lag is not None else "lag not known yet")


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
        "age s",
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
