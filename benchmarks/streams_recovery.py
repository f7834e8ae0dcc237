"""How long is a worker away after a crash? ``python -m benchmarks.streams_recovery``.

A worker with N open decisions is killed (SIGKILL) and started again; the clock runs from the kill
until the new process has read all of them again, by its heartbeat of every second. Its state is a
function of the log, so that it grows with the decisions that are open, and with nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.server_process import wait_until
from benchmarks.streams_field import STOP_SECONDS, settings_in
from benchmarks.streams_load import append, interaction
from console.local_broker import LocalBroker, remove_dead_members
from contracts.broker import create_topics
from contracts.clock import SystemClock
from contracts.heartbeat import Heartbeat, read_heartbeat
from contracts.ids import uuid7_ids
from contracts.settings import Settings, to_environment

WINDOW_SECONDS = 3600.0
DEADLINE_SECONDS = 300.0
NAME, CLIENT_ID = "streams-1", "headrace-streams-1"


def recovery(count: int, folder: Path) -> dict[str, Any]:
    """Return the seconds from a kill with ``count`` open decisions until they are open again."""
    folder.mkdir(parents=True)
    with LocalBroker(folder / "broker") as broker:
        settings = settings_in(folder, broker.kafka, window_seconds=WINDOW_SECONDS)
        create_topics(settings.kafka)
        clock = SystemClock()
        new_id = uuid7_ids(clock)
        made = [interaction(clock.now(), new_id, number)[0] for number in range(count)]
        asyncio.run(append(settings.kafka, made))
        with _worker(settings, folder / "first.log") as first:
            _await(settings, first, f"{count} open decisions", _holds(count))
            resident = psutil.Process(first.pid).memory_info().rss
            first.send_signal(signal.SIGKILL)
            first.wait(STOP_SECONDS)
        killed = time.monotonic()
        group = f"{settings.kafka.prefix}streams"
        remove_dead_members(settings.kafka.bootstrap, group, lambda name: name == CLIENT_ID)
        with _worker(settings, folder / "second.log") as second:
            _await(settings, second, "partitions", lambda found: found.ready)
            ready = time.monotonic()
            _await(settings, second, f"{count} open decisions again", _holds(count))
            caught_up = time.monotonic()
    return {
        "open": count,
        "ready_seconds": round(ready - killed, 1),
        "caught_up_seconds": round(caught_up - killed, 1),
        "resident_mb": round(resident / 1e6),
    }


def _holds(count: int) -> Callable[[Heartbeat], bool]:
    return lambda found: found.counts["open"] == count and found.lag == 0


def _await(
    settings: Settings,
    process: subprocess.Popen[bytes],
    what: str,
    condition: Callable[[Heartbeat], bool],
) -> None:
    def reached() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the worker ended with {process.returncode}")
        found = read_heartbeat(settings.state_dir, NAME)
        return found is not None and found.pid == process.pid and condition(found)

    wait_until(reached, what, DEADLINE_SECONDS)


@contextmanager
def _worker(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "streams"],
            stdout=file,
            stderr=file,
            env={**os.environ, **to_environment(settings)},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(STOP_SECONDS)


def table(found: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    rows = [
        "| open decisions | s until it has its partitions | s until all are open again | MB |",
        "|---|---|---|---|",
    ]
    for at in found:
        cells = (at["ready_seconds"], at["caught_up_seconds"], at["resident_mb"])
        rows.append(f"| {at['open']:,} | {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams_recovery", description=__doc__
    )
    parser.add_argument("--open", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    found = []
    with TemporaryDirectory() as folder:
        for count in parser.parse_args().open:
            found.append(recovery(count, Path(folder) / str(count)))
            print(found[-1], file=sys.stderr)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
