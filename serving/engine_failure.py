"""What a decision says of an engine that failed, and how that is read again as a crash.

Both are here, so that what is written is what is recognised, with content or without.
"""

from __future__ import annotations

import re

from contracts.errors import EngineError

TOO_LATE = 504
"""Status of an engine whose answer was not whole in engine.timeout_seconds."""

_STATUS = "the engine answered with status"
_CRASH = re.compile(rf"{_STATUS} 500\b|(?!{_STATUS} )[^;]*\bNaN\b")


def failure_text(error: EngineError, *, content: bool) -> str:
    """Return what went wrong; the engine's own message, which may quote the conversation, only
    where ``content`` may be kept. Its status comes first in either case."""
    if not error.status:
        return str(error)
    said = f"{_STATUS} {error.status}"
    return f"{said}: {error}" if content else said


def is_crash(reason: str) -> bool:
    """Tell whether the first failure of a decision's error is of an engine that fails by itself.

    That is status 500, or NaN where there is no status; 503 and 504 are overload. What an engine's
    message says behind the status decides nothing, since it may quote a user.
    """
    charged = reason.split(": ", 2)  # the arm, its version, and what happened
    said = charged[-1].removeprefix("broke off: ")
    return len(charged) == 3 and _CRASH.match(said) is not None
