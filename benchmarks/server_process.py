"""A server that a benchmark starts, waits for and ends."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

START_SECONDS = 300.0
STOP_SECONDS = 30.0


class Command(Struct, frozen=True):
    """What to start: the words, what the environment has besides ours, and where output goes."""

    words: list[str]
    environment: dict[str, str]
    log: Path


@contextmanager
def server_process(command: Command, ready: str) -> Iterator[int]:
    """Run a server from when the address ``ready`` answers until the block ends; give its pid.

    Raises RuntimeError with the end of its log when it ends, TimeoutError when it never answers.
    """
    with command.log.open("wb") as file:
        process = subprocess.Popen(
            command.words, stdout=file, stderr=file, env={**os.environ, **command.environment}
        )
    try:

        def answers() -> bool:
            if process.poll() is not None:
                said = command.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the server that should answer at {ready} ended:\n{said}")
            try:
                urllib.request.urlopen(ready, timeout=5).close()  # noqa: S310 - our own loopback address
            except (urllib.error.URLError, OSError):
                return False
            return True

        wait_until(answers, f"{ready} (log {command.log})", START_SECONDS)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait for a condition; TimeoutError names ``what`` did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds} s")
        time.sleep(0.05)
