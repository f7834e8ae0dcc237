"""A ``headrace up`` that a test runs and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from console.stack_file import read_stack
from contracts.settings import Settings, load_settings
from tests.until import until

START_SECONDS = 240.0
STOP_SECONDS = 120.0


@contextmanager
def running_stack(path: Path) -> Iterator[Settings]:
    """Run the stack of a settings file from when it is up until the block ends."""
    settings, output = load_settings(path, {}), path.parent / "up.txt"
    with output.open("w") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "console", "--settings", str(path), "up"],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:

        def runs() -> bool:
            assert up.poll() is None, output.read_text()
            found = read_stack(settings.state_dir)
            return found is not None and found.phase == "running"

        until("start of the stack", runs, START_SECONDS)
        yield settings
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(STOP_SECONDS)
