"""How long the learner waits for a broker that is away, or does not give what is to be read."""

from __future__ import annotations

import logging
from threading import Event as Flag

from contracts.clock import Clock
from contracts.errors import DeadlineError
from contracts.settings import Kafka
from contracts.topics import SAMPLES

PATIENCE_SECONDS = 300.0
PAUSE_SECONDS = 1.0
_log = logging.getLogger("learner")


class Backoff:
    """Pauses between one try to follow the log and the next.

    It gives up 300 s after the first of a row of tries that all came to nothing: some errors, as of
    a topic that may not be read or a record that cannot, arise anew each time.
    """

    def __init__(self, kafka: Kafka, clock: Clock, stop: Flag) -> None:
        self._kafka = kafka
        self._clock = clock
        self._stop = stop
        self._since: float | None = None
        self._furthest = -1

    def pause(self, error: Exception) -> None:
        """Wait for a second, or less when asked to stop; DeadlineError when it took too long."""
        now = self._clock.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since > PATIENCE_SECONDS:
            raise DeadlineError(
                f"broker {self._kafka.bootstrap}: nothing of {SAMPLES.name} could be read for "
                f"{PATIENCE_SECONDS:g} s ({type(error).__name__}: {error}); see 'headrace doctor'"
            ) from error
        _log.warning("waiting for %s: %s: %s", self._kafka.bootstrap, type(error).__name__, error)
        self._stop.wait(PAUSE_SECONDS)

    def read(self, offset: int) -> None:
        """Note how far the log was read: what comes again after a connection is no progress."""
        if offset > self._furthest:
            self._furthest = offset
            self.end()

    def end(self) -> None:
        """Note that the log is followed."""
        self._since = None
