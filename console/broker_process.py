"""Runs the development broker as a child and ends it so that no acknowledged record is lost.

On SIGTERM alone noida-db saves its records while it still acknowledges new ones; stopping its Kafka
service first closes the connections, saves, and loses nothing. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

SAVE_SECONDS = 15.0


def save(program: str, data_dir: str) -> None:
    """Close the broker's connections and have it write its records to disk."""
    command = [program, "stop", "kafka", "--data-dir", data_dir]
    try:
        subprocess.run(command, timeout=SAVE_SECONDS, check=False, stdout=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        print(f"the broker did not save within {SAVE_SECONDS} s", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the program after ``--`` and wait; SIGTERM and SIGINT end it cleanly."""
    parser = argparse.ArgumentParser(prog="python -m console.broker_process", description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals | {signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored by default, so sigwait misses it
    child = subprocess.Popen(options.command, preexec_fn=_unblock)  # noqa: PLW1509 - no threads here
    while True:
        if signal.sigwait(signals | {signal.SIGCHLD}) in signals:
            save(options.command[0], options.data_dir)
            child.terminate()
            child.wait()
            return 0
        if (code := child.poll()) is not None:
            return code


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


if __name__ == "__main__":
    sys.exit(main())
