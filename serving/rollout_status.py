"""How the rollout controller fares: its heartbeat, written once a second by a thread of its own.

A call to broker or engine may take longer than a heartbeat may be old; the note says what is
waited for, and every such wait has a deadline.
"""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event, Thread

from contracts.clock import Clock
from contracts.events import Rollout
from contracts.heartbeat import beat

BEAT_SECONDS = 1.0

_log = logging.getLogger("headrace.rollout")


class RolloutStatus:
    """What the heartbeat says. ``stopping`` is the wish that the controller ends."""

    def __init__(self, state_dir: Path, clock: Clock, process: str = "rollout") -> None:
        self.stopping = Event()
        self._state_dir = state_dir
        self._clock = clock
        self._process = process
        self._ready = False
        self._lag: int | None = None
        self._note = "starting"
        self._under_way = 0
        self._counts: dict[str, int] = {}
        self._told: tuple[str, ...] = ()
        self.forget()

    def forget(self) -> None:
        """Begin to count anew, before the history is read."""
        names = ("releases", "promoted", "rolled_back", "refused", "canary_requests")
        self._counts = dict.fromkeys(names, 0)
        self._told = ()

    def tally(self, state: Rollout) -> None:
        """Count what became of releases, given the states that held in the order of the topic."""
        told = (state.phase, state.rollout_id or "", state.judged, state.stable.version)
        if told == self._told:
            return
        before, self._told = self._told, told
        first = before[1:3] != told[1:3]
        if state.phase in ("shadow", "canary"):
            self._counts["releases"] += first
        elif state.phase == "promoted":
            self._counts["promoted"] += 1
        elif state.phase == "rolled-back":
            self._counts["rolled_back"] += 1
        elif state.phase == "refused":
            self._counts["releases"] += first
            self._counts["refused"] += 1
        if state.phase in ("promoted", "rolled-back") and before[0] in ("shadow", "canary"):
            self._counts["canary_requests"] += state.evidence.requests.get("canary", 0)

    def working(self, state: Rollout, lag: int | None, note: str) -> None:
        """Say that all is well."""
        counting = state.candidate is not None
        self._under_way = state.evidence.requests.get("canary", 0) if counting else 0
        self._ready, self._lag, self._note = True, lag, note

    def waiting(self, note: str) -> None:
        """Say what is waited for; readiness stays as it was."""
        self._note = note

    def counts(self) -> dict[str, int]:
        """Return the counts since the topic began."""
        return self._counts | {"canary_requests": self._counts["canary_requests"] + self._under_way}

    def start(self) -> Thread:
        """Start the heartbeat; it ends with ``stopping``."""
        thread = Thread(target=self._beat, name="rollout-heartbeat", daemon=True)
        thread.start()
        return thread

    def _beat(self) -> None:
        while True:
            stopping = self.stopping.is_set()
            try:
                beat(
                    self._state_dir,
                    self._process,
                    self._clock,
                    ready=self._ready and not stopping,
                    lag=self._lag,
                    counts=self.counts(),
                    note="stopping" if stopping else self._note,
                )
            except OSError as error:
                _log.warning("cannot write the heartbeat: %s", error)
            if stopping:
                return
            self.stopping.wait(BEAT_SECONDS)
