"""The tree of errors: each message says what was given, what is allowed, and the cure.

HeadraceError
├── SettingsError          a value in headrace.yaml or the environment is not allowed
├── CodecError             a Kafka record is not a valid event (carries a dead-letter reason)
├── ManifestError          a version directory does not match its manifest
├── EngineError            the inference engine refused or failed a call
├── DeadlineError          a named wait ran out of time
└── UnavailableError       a server or tool this command needs is missing
    └── TopicMissingError  a topic that is yet to be made
"""

from __future__ import annotations

from typing import Literal

DeadLetterReason = Literal[
    "malformed",
    "oversized",
    "unknown-type",
    "unknown-version",
    "invalid",
    "failed",
    "quarantined",
]
"""Why a record was put aside; ``failed``: a valid event that its reader could not process,
``quarantined``: valid feedback that is not trusted."""


class HeadraceError(Exception):
    """Root of every error that Headrace raises on purpose."""


class SettingsError(HeadraceError, ValueError):
    """A setting has a value that is not allowed."""


class CodecError(HeadraceError, ValueError):
    """A record cannot become an event; ``reason`` is one of `DeadLetterReason`."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DeadLetterReason = reason
        self.detail = detail


class ManifestError(HeadraceError, ValueError):
    """Files on disk do not match the manifest that describes them."""


class EngineError(HeadraceError, RuntimeError):
    """The inference engine refused or failed a call; ``status`` is its HTTP status, 0 if none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class DeadlineError(HeadraceError, TimeoutError):
    """A named wait ran out of time."""


class UnavailableError(HeadraceError, RuntimeError):
    """Something this command needs is missing; the message names the cure."""


class TopicMissingError(UnavailableError):
    """The broker has no such topic yet: whoever waits for it may try again."""
