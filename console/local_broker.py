"""The development broker: noida-db as a child process, one per local stack or test.

It keeps records in memory and writes them to its data directory when `console.broker_process` ends
it; it never evicts a dead group member, so whoever ends a worker must call `remove_dead_members`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from contracts.broker import wait_for_broker
from contracts.errors import DeadlineError, UnavailableError
from contracts.settings import Kafka

START_SECONDS = 20.0
STOP_SECONDS = 20.0
LAST_CHARACTERS = 1000


def free_port() -> int:
    """Return a loopback TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def broker_command(port: int, data_dir: Path) -> list[str]:
    """Return the command line of the development broker; UnavailableError when not installed."""
    try:
        import noida_db
    except ImportError as error:
        raise UnavailableError(
            "no local broker: the package noida-db has no build for this machine; "
            "give your own Kafka with --kafka HOST:PORT"
        ) from error
    program = Path(noida_db.__file__).parent / "noida-db"
    return [
        *(sys.executable, "-m", "console.broker_process", "--data-dir", str(data_dir), "--"),
        *(str(program), "start", "--only", "kafka"),
        *("--kafka-port", str(port), "--data-dir", str(data_dir)),
    ]


class LocalBroker:
    """A running development broker; use as a context manager."""

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.kafka = Kafka(bootstrap=f"127.0.0.1:{self.port}")
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> LocalBroker:
        """Start the process and wait until it answers; UnavailableError says why it does not."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        path = self._data_dir / "broker.log"
        with path.open("ab") as log:
            begin = log.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                broker_command(self.port, self._data_dir),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        try:
            wait_for_broker(self.kafka, START_SECONDS, lambda: process.poll() is None)
        except BaseException as error:
            self._abandon()
            if isinstance(error, DeadlineError):
                raise UnavailableError(_why(path, begin)) from error
            raise
        return self

    def _abandon(self) -> None:
        """Kill a broker that never answered; to have it save might stop one on the same data."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def stop(self) -> None:
        """End the process with SIGTERM, on which it saves its records to disk."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = None

    def __enter__(self) -> LocalBroker:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _why(log: Path, begin: int) -> str:
    """Return why a broker did not start, from what it wrote to its log after ``begin``."""
    written = log.read_bytes()[begin:].decode(errors="replace").strip()
    if "is already running" in written:
        return (
            f"another command reads or runs the event log in {log.parent}; "
            "try again when that has ended"
        )
    return f"the local broker did not start; the end of {log}:\n{written[-LAST_CHARACTERS:]}"


def remove_dead_members(bootstrap: str, group: str, is_dead: Callable[[str], bool]) -> int:
    """Send LeaveGroup for each member whose client id ``is_dead``; return how many left."""
    from kafka import KafkaAdminClient
    from kafka.admin import MemberToRemove

    admin = KafkaAdminClient(bootstrap_servers=bootstrap, client_id="headrace-supervisor")
    try:
        members: list[dict[str, Any]] = admin.describe_groups([group])[group]["members"]
        dead = [
            MemberToRemove(member_id=member["member_id"])
            for member in members
            if is_dead(member["client_id"])
        ]
        if dead:
            admin.remove_group_members(group, dead)
        return len(dead)
    finally:
        admin.close()
