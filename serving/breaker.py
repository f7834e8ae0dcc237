"""A circuit breaker per version: one that keeps failing is skipped at once, and tried again later.

Closed, open, half-open as in Nygard, "Release It!" (2007): it opens after consecutive failures or
a share of failures in a window; after a delay one request is let through to see.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from msgspec import Struct

from contracts.clock import Clock
from contracts.settings import Gateway

MAX_VERSIONS = 64
"""Versions remembered; beyond it the one not asked for longest is forgotten."""


class _Circuit(Struct):
    """What one version did; ``retry_at`` is None while closed."""

    outcomes: deque[bool]
    consecutive: int = 0
    retry_at: float | None = None


class Breakers:
    """The breakers of all versions; for one event loop. ``changed`` hears (version, opened)."""

    def __init__(
        self, rules: Gateway, clock: Clock, changed: Callable[[str, bool], None] = lambda *_: None
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._changed = changed
        self._circuits: OrderedDict[str, _Circuit] = OrderedDict()

    def admits(self, version: str) -> bool:
        """Tell whether a version may be asked; of an open one, one request per delay may ask."""
        circuit = self._circuits.get(version)
        if circuit is None or circuit.retry_at is None:
            return True
        now = self._clock.monotonic()
        if now < circuit.retry_at:
            return False
        circuit.retry_at = now + self._rules.breaker_seconds
        return True

    def succeeded(self, version: str) -> None:
        """Note an answer; it closes an open breaker."""
        circuit = self._circuit(version)
        circuit.consecutive = 0
        if circuit.retry_at is not None:
            circuit.retry_at = None
            circuit.outcomes.clear()
            self._changed(version, False)
        circuit.outcomes.append(True)

    def failed(self, version: str) -> None:
        """Note a failure of the version or its engine, never one that the request caused."""
        circuit = self._circuit(version)
        circuit.consecutive += 1
        circuit.outcomes.append(False)
        was_open = circuit.retry_at is not None
        if was_open or self._is_too_much(circuit):
            circuit.retry_at = self._clock.monotonic() + self._rules.breaker_seconds
            if not was_open:
                self._changed(version, True)

    def open_versions(self) -> tuple[str, ...]:
        """Return the versions that are skipped or on trial."""
        return tuple(name for name, it in self._circuits.items() if it.retry_at is not None)

    def _is_too_much(self, circuit: _Circuit) -> bool:
        rules, seen = self._rules, circuit.outcomes
        share = seen.count(False) / rules.breaker_window
        in_window = len(seen) == rules.breaker_window and share >= rules.breaker_share
        return circuit.consecutive >= rules.breaker_failures or in_window

    def _circuit(self, version: str) -> _Circuit:
        circuit = self._circuits.get(version)
        if circuit is None:
            circuit = _Circuit(deque(maxlen=self._rules.breaker_window))
            self._circuits[version] = circuit
        self._circuits.move_to_end(version)
        while len(self._circuits) > MAX_VERSIONS:
            self._circuits.popitem(last=False)
        return circuit
