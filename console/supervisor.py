"""Starts programs by their needs, restarts what dies, stops only its own, in reverse."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

from msgspec import Struct
from msgspec.structs import replace

from console.child import Child, Program
from console.child_environment import inherited_environment
from console.probe import Probe, Server
from console.stack_file import Phase, ProcessEntry, StackFile, State, start_time, write_stack
from console.waiting import POLL_SECONDS, Shown
from contracts.clock import SystemClock
from contracts.errors import DeadlineError, HeadraceError, UnavailableError

LONGEST_DELAY_SECONDS = 20.0
CALM_SECONDS = 120.0
"""A process that ran this long is restarted at once again."""


class Addresses(Struct, frozen=True, kw_only=True):
    """Where the stack's servers listen, and the model they serve."""

    kafka: str = ""
    engine: str = ""
    engine_kind: str = ""
    gateway: str = ""
    model: str = ""


class Supervisor:
    """Runs programs until told to stop. Not thread-safe: one thread calls it at a time.

    Servers ``outside`` are run by others: they are only asked how they fare.
    """

    def __init__(
        self,
        state_dir: Path,
        programs: Sequence[Program],
        addresses: Addresses,
        shown: Shown,
        outside: Sequence[Server] = (),
    ) -> None:
        self._state_dir = state_dir
        self._children = [Child(program, state_dir / "logs") for program in programs]
        self._order: list[Child] = []
        self._addresses = addresses
        self._shown = shown
        self._phase: Phase = "starting"
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._outside = outside
        self._probes: list[Probe] = []

    # --- start ---------------------------------------------------------------------------------

    def start(self, stop: Event | None = None) -> None:
        """Start all programs and return when all are ready.

        Raises DeadlineError or UnavailableError, with the end of the log, after stopping what it
        had started; KeyboardInterrupt likewise when ``stop`` is set.
        """
        self._start_watchdog()
        self._start_probes()
        try:
            self._start_all(stop or Event())
        except BaseException:
            self.stop()
            raise
        self._set_phase("running")

    def _start_all(self, stop: Event) -> None:
        began: dict[str, float] = {}
        self._shown.begin()
        while not all(child.ready for child in self._children):
            ready = {child.program.name for child in self._children if child.ready}
            lacking = []
            for child in self._children:
                name = child.program.name
                if child.ready or not ready.issuperset(child.program.needs):
                    continue
                if name not in began:
                    began[name] = time.monotonic()
                    self._launch(child)
                if words := self._judge(child, time.monotonic() - began[name]):
                    lacking.append(f"{name} {time.monotonic() - began[name]:.0f} s ({words})")
            if lacking:
                self._shown.waiting("  waiting for " + ", ".join(lacking))
                if stop.wait(POLL_SECONDS):
                    raise KeyboardInterrupt

    def _launch(self, child: Child) -> None:
        child.start()
        self._order.append(child)
        self._write()

    def _judge(self, child: Child, elapsed: float) -> str:
        name, code = child.program.name, child.exit_code()
        if code is not None:
            raise UnavailableError(
                f"{name} ended with code {code} while starting; the end of {child.log}:\n"
                f"{child.last_lines()}"
            )
        lacking = _lacking(child)
        if not lacking:
            self._shown.say(f"  {name:<12} ready after {elapsed:5.1f} s  (pid {child.pid})")
            self._write()
        elif elapsed > child.program.start_seconds:
            raise DeadlineError(
                f"{name} is not ready after {child.program.start_seconds:.0f} s: {lacking}; "
                f"the end of {child.log}:\n{child.last_lines()}"
            )
        return lacking

    # --- watch ---------------------------------------------------------------------------------

    def watch(self, stop: Event) -> None:
        """Restart what dies until ``stop`` is set."""
        while not stop.wait(POLL_SECONDS):
            self.check()

    def check(self) -> None:
        """Look at every process once; restart what died when its delay is over."""
        for child in self._children:
            if child.exit_code() is not None:
                self._restart_when_due(child)
            elif not child.ready and not _lacking(child):
                self._shown.say(f"{child.program.name} is ready again (pid {child.pid})")
                self._write()

    def _restart_when_due(self, child: Child) -> None:
        name, now = child.program.name, time.monotonic()
        if name not in self._due:
            child.ready = False
            lived = time.time() - child.started
            failures = 0 if lived > CALM_SECONDS else self._failures.get(name, 0)
            delay = min(0.5 * 2**failures - 0.5, LONGEST_DELAY_SECONDS)
            self._failures[name] = failures + 1
            self._due[name] = now + delay
            self._shown.say(
                f"{name} died (code {child.exit_code()}); starts again in {delay:.1f} s, "
                f"log: {child.log}"
            )
            self._write()
        if now < self._due[name]:
            return
        child.stop()
        try:
            child.start()
        except (HeadraceError, OSError) as error:
            self._due[name] = now + LONGEST_DELAY_SECONDS / 4
            self._shown.say(f"{name} cannot start yet: {error}")
            return
        del self._due[name]
        child.restarts += 1
        self._write()

    # --- stop ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop what was started, each before what it needs; safe to call twice."""
        self._set_phase("stopping")
        while self._probes:
            self._probes.pop().stop()
        if self._order:
            self._stop_all()
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None
            self._shown.say("  all stopped")
        self._set_phase("stopped")

    def _stop_all(self) -> None:
        """Stop every child as soon as all that need it have ended."""
        ending: dict[Child, Future[bool]] = {}
        with ThreadPoolExecutor(len(self._order)) as pool:
            while self._order:
                child = self._order.pop()
                needing = [
                    end
                    for other, end in ending.items()
                    if child.program.name in other.program.needs
                ]
                ending[child] = pool.submit(_stop_after, needing, child)
            for child, end in ending.items():
                self._shown.waiting(f"  stopping {child.program.name}")
                if not end.result():
                    self._shown.say(
                        f"  {child.program.name} did not end within "
                        f"{child.program.stop_seconds:.0f} s and was killed; log: {child.log}"
                    )
                self._write()

    # --- what others see -----------------------------------------------------------------------

    def _start_watchdog(self) -> None:
        self._write()
        self._watchdog = subprocess.Popen(
            [sys.executable, "-m", "console.watchdog", str(self._state_dir)],
            env=inherited_environment(),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _start_probes(self) -> None:
        clock = SystemClock()
        for server in self._outside:
            self._probes.append(Probe(self._state_dir, server, lambda: 0, clock))
        for child in self._children:
            if child.program.server is not None:
                probe = Probe(self._state_dir, child.program.server, child.ready_pid, clock)
                self._probes.append(probe)
        for probe in self._probes:
            probe.start()

    def _set_phase(self, phase: Phase) -> None:
        self._phase = phase
        self._write()

    def _write(self) -> None:
        write_stack(
            self._state_dir,
            StackFile(
                supervisor_pid=os.getpid(),
                supervisor_started=start_time(os.getpid()),
                phase=self._phase,
                kafka=self._addresses.kafka,
                engine=self._addresses.engine,
                engine_kind=self._addresses.engine_kind,
                gateway=self._addresses.gateway,
                model=self._addresses.model,
                processes=(
                    *(ProcessEntry(name=server.name, state="outside") for server in self._outside),
                    *(self._entry(child) for child in self._children),
                ),
            ),
        )

    def _entry(self, child: Child) -> ProcessEntry:
        entry = ProcessEntry(
            name=child.program.name,
            state=_state(child),
            port=child.program.port,
            restarts=child.restarts,
        )
        if child.exit_code() is None:
            entry = replace(entry, pid=child.pid, started=child.started)
        return entry


def _lacking(child: Child) -> str:
    """Return what is missing, "" when the child is ready and its ``after_ready`` went well."""
    lacking = child.check_ready()
    if not lacking:
        try:
            child.program.after_ready()
        except HeadraceError as error:
            child.ready = False
            return str(error)
    return lacking


def _stop_after(others: list[Future[bool]], child: Child) -> bool:
    wait(others)
    return child.stop()


def _state(child: Child) -> State:
    if child.pid == 0:
        return "waiting"
    if child.exit_code() is not None:
        return "dead"
    return "running" if child.ready else "starting"
