"""Standing by: a controller that lost its term waits, and takes over from one that fell silent."""

from __future__ import annotations

from contracts.clock import Clock
from serving.rollout_log import RolloutLog
from serving.rollout_term import Term


class Standby:
    """Whether this controller stands by, and since when the other one is silent."""

    def __init__(self, term: Term, log: RolloutLog, clock: Clock, takeover_seconds: float) -> None:
        self._term = term
        self._log = log
        self._clock = clock
        self._takeover_seconds = takeover_seconds
        self._entered = False
        self._audited = False
        self._heard_at = 0.0

    @property
    def note(self) -> str:
        """Who acts meanwhile."""
        newest = self._term.newest
        whose = f"term {newest.term} is held by {newest.writer}" if newest else "no term is held"
        return f"standing by: {whose}"

    def enter(self) -> None:
        """Stand by from here on."""
        self._entered, self._audited = True, False
        self._heard_at = self._clock.monotonic()

    def stays(self, policy: str) -> bool:
        """Listen once; return whether another controller still acts.

        Raises KafkaError or HeadraceError while the broker is away: that is not the other's
        silence, so the wait begins again.
        """
        if not self._entered:
            return False
        heard_at, self._heard_at = self._heard_at, self._clock.monotonic()
        if not self._audited:
            newest = self._term.newest
            term, writer = (newest.term, newest.writer) if newest else (0, "")
            detail = {"policy": policy, "term": term, "writer": writer}
            self._log.audit("rollout.fenced", policy, self.note, detail)
            self._audited = True
        if not self._term.read():
            self._heard_at = heard_at
            self._entered = self._clock.monotonic() - heard_at < self._takeover_seconds
        return self._entered
