"""Beats once a second from a thread of its own, so that a long update does not look like death."""

from __future__ import annotations

import logging
from threading import Event, Thread

from contracts.clock import Clock
from contracts.heartbeat import beat
from contracts.settings import Settings

_log = logging.getLogger("learner")


class Pulse:
    """The heartbeat of the learner; the loop sets the fields, the thread writes them."""

    def __init__(self, settings: Settings, clock: Clock, process: str) -> None:
        self.ready = False
        self.lag: int | None = None
        self.counts: dict[str, int] = {}
        self.note = "loading the policy"
        self._settings = settings
        self._clock = clock
        self._process = process
        self._stop = Event()
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        """Beat once a second; a full disk must not end it."""
        while True:
            try:
                self._beat()
            except OSError as error:
                _log.warning("cannot write the heartbeat: %s", error)
            if self._stop.wait(1.0):
                return

    def _beat(self) -> None:
        beat(
            self._settings.state_dir,
            self._process,
            self._clock,
            ready=self.ready,
            lag=self.lag,
            counts=self.counts,
            note=self.note,
        )
