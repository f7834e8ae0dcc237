"""Ends the processes of a stack whose supervisor died without doing so itself.

``python -m console.watchdog STATE_DIR`` waits for the end of its standard input, which is a pipe
that only the supervisor holds open: that works on every system and for every kind of death.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from console.child import end_recorded
from console.stack_file import read_stack, supervisor_runs

STOP_SECONDS = 20.0


def main(state_dir: Path) -> None:
    """Wait for the supervisor's end, then end what it left running, last started first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    stack = read_stack(state_dir)
    if stack is None or supervisor_runs(stack):
        return
    entries = reversed(stack.processes)
    end_recorded(((entry.pid, entry.started) for entry in entries), STOP_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
