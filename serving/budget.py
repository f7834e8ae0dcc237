"""How long one request may take: the settings' time, or less when the client says so."""

from __future__ import annotations

import math

from msgspec import Struct

from serving.wire_errors import Refusal

BUDGET_HEADER = "X-Headrace-Timeout-Seconds"


class Budget(Struct, frozen=True):
    """Seconds from when the request was read; ``patient`` unless the client cut them short.

    Only under a patient budget does running out of time count against a version, for its breaker
    and as evidence of a rollout.
    """

    seconds: float
    patient: bool = True


def budget_of(given: str | None, allowed: float) -> Budget:
    """Return the budget under the client's header; Refusal 400 when it is no number above 0."""
    if given is None:
        return Budget(allowed)
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise Refusal(
            400,
            f"{BUDGET_HEADER} is {given[:40]!r}; give seconds above 0, at most {allowed:g} count",
            param=BUDGET_HEADER,
        )
    return Budget(allowed) if seconds >= allowed else Budget(seconds, patient=False)
