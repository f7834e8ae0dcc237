"""The test's side of the `nursery`: starts learners, waits for what they do, kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import msgspec

from contracts.heartbeat import Heartbeat, read_heartbeat
from contracts.settings import Settings, to_environment
from tests.learner.nursery import Order, Suicide
from tests.until import until

SECONDS = 120.0
KILLED = -signal.SIGKILL


class Lives:
    """Learners, one at a time, each a real process; use as a context manager."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._nursery: subprocess.Popen[bytes] | None = None
        self._settings = Settings()
        self._pid = 0
        self._status: int | None = None

    def __enter__(self) -> Lives:
        with self.log.open("ab") as log:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.learner.nursery"],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )
        assert self._line() is None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        self._nursery.wait(10)

    def start(self, settings: Settings, suicide: Suicide | None = None) -> None:
        """Start a learner."""
        self._settings = settings
        order = Order(
            kind="start",
            environment=to_environment(settings),
            log=str(self.log),
            suicide=suicide,
        )
        self._pid, self._status = self._ask(order) or 0, None
        assert self._pid

    def ended(self, *, block: bool = False) -> int | None:
        """Return the exit code (negative: the signal), None while it lives."""
        if self._status is None:
            self._status = self._ask(Order(kind="ended", pid=self._pid, block=block))
        return self._status

    def kill(self) -> None:
        """End it as a power cut does."""
        os.kill(self._pid, signal.SIGKILL)
        assert self.ended(block=True) == KILLED

    def stop(self) -> None:
        """End it as an operator does."""
        os.kill(self._pid, signal.SIGTERM)
        until("the learner's end", lambda: self.ended() == 0, SECONDS, state=self.last_lines)

    def beat(self) -> Heartbeat | None:
        """Return the newest heartbeat of the learner that lives now."""
        beat = read_heartbeat(self._settings.state_dir, "learner")
        return beat if beat is not None and beat.pid == self._pid and beat.ready else None

    def has_read_all(self) -> bool:
        """Tell whether nothing waits to be read."""
        beat = self.beat()
        return beat is not None and beat.lag == 0

    def last_lines(self) -> str:
        """Return the end of the log, to show when something fails."""
        return self.log.read_text(errors="replace")[-3000:]

    def _ask(self, order: Order) -> int | None:
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(msgspec.json.encode(order) + b"\n")
        return self._line()

    def _line(self) -> int | None:
        assert self._nursery is not None
        assert self._nursery.stdout is not None
        return msgspec.json.decode(self._nursery.stdout.readline(), type=int | None)
