"""Waits that show themselves: what is waited for, for how long, and until when."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from threading import Event
from typing import TextIO

from contracts.errors import DeadlineError

REPEAT_SECONDS = 15.0
POLL_SECONDS = 0.2


class Shown:
    """Writes lines for a person: on a terminal the current wait is one line that changes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._open = False
        self._next = 0.0

    def say(self, text: str) -> None:
        """Write one finished line."""
        self._stream.write(("\r\033[K" if self._open else "") + text + "\n")
        self._stream.flush()
        self._open = False

    def waiting(self, text: str) -> None:
        """Show the state of a wait; into a file only every few seconds."""
        if self._terminal:
            self._stream.write("\r\033[K" + text[:110])
            self._stream.flush()
            self._open = True
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + REPEAT_SECONDS
            self.say(text)

    def begin(self) -> None:
        """Start a new wait: its first line into a file comes after a while, not at once."""
        self._next = time.monotonic() + REPEAT_SECONDS


def wait_until(
    name: str,
    missing: Callable[[], str],
    seconds: float,
    shown: Shown,
    stop: Event | None = None,
) -> float:
    """Wait until ``missing()`` returns "" and return the seconds it took.

    ``missing`` says in words what is not there yet. Raises DeadlineError with those words after
    ``seconds``, KeyboardInterrupt when ``stop`` is set.
    """
    started = time.monotonic()
    shown.begin()
    while lacking := missing():
        elapsed = time.monotonic() - started
        if elapsed > seconds:
            raise DeadlineError(f"{name}: not after {seconds:.0f} s; still missing: {lacking}")
        shown.waiting(f"  waiting for {name}: {lacking} ({elapsed:.0f} s of at most {seconds:.0f})")
        if stop is not None and stop.wait(POLL_SECONDS):
            raise KeyboardInterrupt
        if stop is None:
            time.sleep(POLL_SECONDS)
    return time.monotonic() - started
