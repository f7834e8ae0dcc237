"""One supervised process: what starts it, how one knows that it is ready, how it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct

from console.child_environment import inherited_environment
from console.probe import Server
from console.stack_file import is_same_process, start_time


def _nothing() -> None:
    return None


class Program(Struct, frozen=True, kw_only=True):
    """What to run and how to judge it.

    ``missing`` takes the pid and says in words what is not ready yet, "" when all is. ``needs``
    names the programs that must be ready before this one starts. ``environment`` lies over ours,
    of which the feedback secret is not passed on. ``server`` is how to ask a program that writes
    no heartbeat.
    """

    name: str
    command: tuple[str, ...]
    missing: Callable[[int], str]
    environment: dict[str, str] = {}
    needs: tuple[str, ...] = ()
    port: int | None = None
    start_seconds: float = 90.0
    stop_seconds: float = 20.0
    before_start: Callable[[], None] = _nothing
    after_ready: Callable[[], None] = _nothing
    server: Server | None = None


class Child:
    """A program with at most one running process, in a process group of its own."""

    def __init__(self, program: Program, logs: Path) -> None:
        self.program = program
        self.log = logs / f"{program.name}.log"
        self.pid = 0
        self.started = 0.0
        self.ready = False
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._group_ended = False

    def start(self) -> None:
        """Start the process; its output goes to the end of its log."""
        self.program.before_start()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.program.command,
                env=inherited_environment() | self.program.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.started = start_time(self.pid)
        self._group_ended = False
        self.ready = False

    def exit_code(self) -> int | None:
        """Return the exit code of the process, None while it runs; -1 before its first start."""
        return -1 if self._process is None else self._process.poll()

    def ready_pid(self) -> int | None:
        """Return the pid while the process is ready, None otherwise."""
        return self.pid if self.ready else None

    def check_ready(self) -> str:
        """Ask the program's own check once; remember and return what it says."""
        lacking = self.program.missing(self.pid)
        self.ready = not lacking
        return lacking

    def stop(self) -> bool:
        """End the whole process group; return False when it had to be killed."""
        if self._process is None or self._group_ended:
            return True
        clean = end_group(self._process.pid, self.program.stop_seconds, self._reaped)
        self._process.wait()
        self._group_ended = True
        self.ready = False
        return clean

    def _reaped(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def last_lines(self, count: int = 12) -> str:
        """Return the end of the log, to show when the process fails."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except FileNotFoundError:
            return "(no output)"


def end_group(group: int, seconds: float, leader_gone: Callable[[], bool]) -> bool:
    """Send SIGTERM to a process group's leader, then SIGKILL to what is left of the group.

    Only the leader gets SIGTERM: it ends its own children in its own order. Returns whether the
    leader ended by itself within ``seconds``.
    """
    clean = True
    if not leader_gone():
        _signal(os.kill, group, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while not leader_gone():
            if time.monotonic() > deadline:
                clean = False
                break
            time.sleep(0.05)
    _signal(os.killpg, group, signal.SIGKILL)
    return clean


def end_recorded(processes: Iterable[tuple[int, float]], seconds: float) -> None:
    """End processes known only by (pid, start time), in the order given; others are left alone."""
    for pid, started in processes:
        if pid and is_same_process(pid, started):
            end_group(pid, seconds, lambda p=pid, s=started: not is_same_process(p, s))  # type: ignore[misc] # mypy has no type for defaults of lambdas


def _signal(send: Callable[[int, int], None], target: int, number: int) -> None:
    try:
        send(target, number)
    except (ProcessLookupError, PermissionError):
        return
