"""Starts and ends the local stack, in the foreground or detached from the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from console.child import end_recorded
from console.stack_file import is_same_process, read_stack, supervisor_runs
from console.waiting import POLL_SECONDS, Shown, wait_until
from contracts.errors import UnavailableError
from contracts.settings import Settings

STOP_SECONDS = 120.0
START_SECONDS = 900.0
"""More than all programs may take that wait for each other; each has a deadline of its own."""


@contextmanager
def stop_signals() -> Iterator[Event]:
    """Give an event that SIGTERM and SIGINT set; a second signal changes nothing."""
    stop = Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_stack(settings: Settings, workers: int, shown: Shown) -> None:
    """Start the stack, watch over it until a signal comes, stop it."""
    from console.stack import open_stack

    refuse_second(settings.state_dir)
    resolved, supervisor = open_stack(settings, workers, shown)  # starts nothing: may be cut short
    with stop_signals() as stop:
        shown.say(f"headrace up: {resolved.engine.kind} engine, state in {resolved.state_dir}")
        try:
            supervisor.start(stop)
        except KeyboardInterrupt:
            return
        gateway = f"http://{resolved.gateway.host}:{resolved.gateway.port}"
        shown.say(
            f"ready: point an OpenAI client at {gateway}/v1 (model {resolved.policy.name!r}); "
            f"kafka {resolved.kafka.bootstrap}; Ctrl-C or 'headrace down' stops it"
        )
        try:
            supervisor.watch(stop)
        finally:
            supervisor.stop()


def refuse_second(state_dir: Path) -> None:
    """Raise UnavailableError when a stack already runs in this state directory."""
    stack = read_stack(state_dir)
    if stack is not None and supervisor_runs(stack):
        raise UnavailableError(
            f"a stack already runs in {state_dir} (pid {stack.supervisor_pid}); "
            "end it with 'headrace down', or set another state_dir"
        )


def detach(arguments: list[str], state_dir: Path, shown: Shown) -> None:
    """Start ``headrace up`` with ``arguments`` in the background and show its lines until ready."""
    refuse_second(state_dir)
    log = state_dir.absolute() / "logs" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    at = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "console", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _show_until_running(process, log, at, state_dir, shown)
    except BaseException:
        _end(process, shown)
        raise


def _show_until_running(
    process: subprocess.Popen[bytes], log: Path, at: int, state_dir: Path, shown: Shown
) -> None:
    """Show the lines that come after ``at`` until the stack runs; UnavailableError when not."""
    deadline = time.monotonic() + START_SECONDS
    with log.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(at)
        while True:
            for line in iter(lines.readline, ""):
                shown.say(line.rstrip())
            stack = read_stack(state_dir)
            if stack and stack.supervisor_pid == process.pid and stack.phase == "running":
                shown.say(f"it goes on in the background (pid {process.pid}), log: {log}")
                return
            if process.poll() is not None:
                raise UnavailableError(f"the stack did not start; see {log}")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"the stack did not start within {START_SECONDS:.0f} s and was stopped; "
                    f"see {log}"
                )
            time.sleep(POLL_SECONDS)


def _end(process: subprocess.Popen[bytes], shown: Shown) -> None:
    """Stop a supervisor that did not get ready; its watchdog ends what it leaves behind."""
    if process.poll() is not None:
        return
    shown.say(f"stopping what was started (pid {process.pid})")
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_stack(state_dir: Path, shown: Shown) -> bool:
    """End the stack of a state directory; return False when none ran."""
    stack = read_stack(state_dir)
    if stack is None:
        return False
    if supervisor_runs(stack):
        pid, started = stack.supervisor_pid, stack.supervisor_started
        os.kill(pid, signal.SIGTERM)

        def missing() -> str:
            left = is_same_process(pid, started)
            return f"supervisor {pid} stops its processes" if left else ""

        wait_until("the stack to stop", missing, STOP_SECONDS, shown)
        return True
    left = [e for e in reversed(stack.processes) if is_same_process(e.pid, e.started)]
    end_recorded([(entry.pid, entry.started) for entry in left], 20.0)
    return bool(left)
