"""Admission of a version: what must hold before any user, or any copy of a question, meets it."""

from __future__ import annotations

from contracts.errors import EngineError, ManifestError
from contracts.events import BASE_VERSION, Candidate
from contracts.evidence import GateReport
from serving.gate import Gate
from serving.rollout_adapters import Adapters

LOAD_ATTEMPTS = 3


class Admission:
    """Has versions verified, loaded, warmed up and checked; knows how often each was tried."""

    def __init__(self, adapters: Adapters, gate: Gate) -> None:
        self._adapters = adapters
        self._gate = gate
        self._attempts: tuple[str, int] = ("", 0)

    def load(self, candidate: Candidate, needed: tuple[Candidate, ...]) -> str:
        """Have the engine take a version; return why it cannot be served, "" when it can.

        An engine that is away is waited for (EngineError); one that is well but cannot take this
        version is asked a few times, unless it says that the request itself is at fault.
        """
        if candidate.version == BASE_VERSION:
            return ""
        try:
            self._adapters.admit(candidate, needed)
        except ManifestError as error:
            return str(error)
        except EngineError as error:
            if not self._adapters.healthy():
                raise
            attempts = self._tried(candidate.version)
            if not 400 <= error.status < 500 and attempts < LOAD_ATTEMPTS:
                raise
            return str(error)
        return ""

    def examine(self, candidate: Candidate, incumbent: Candidate) -> GateReport | None:
        """Hold a loaded version to its evidence and its own answers; None when the gate is off.

        Raises EngineError when the engine is away.
        """
        return self._gate.check(candidate, incumbent) if self._gate.is_on else None

    def found(self, candidate: Candidate) -> dict[str, object]:
        """Return the gate's verdict on a version that a person has served, for the audit record."""
        return self._gate.verdict_on(candidate.version)

    def _tried(self, version: str) -> int:
        last, times = self._attempts
        self._attempts = (version, times + 1 if version == last else 1)
        return self._attempts[1]
