"""How long one request may take: the settings' time, or less when the client says so."""

from __future__ import annotations

import math

from msgspec import Struct

from contracts.settings import Gateway
from serving.wire_errors import Refusal

BUDGET_HEADER = "X-Headrace-Timeout-Seconds"


FAIR_SHARE = 0.5
"""Share of the settings' time that is time enough, however little of it the client left."""


class Budget(Struct, frozen=True):
    """Seconds from when the request was read; ``share`` is how much of the settings' time it is."""

    seconds: float
    share: float = 1.0


def is_charged(rules: Gateway, budget: Budget, had: float, tokens: int = 0) -> bool:
    """Tell whether a version is to blame that had so many seconds of a budget in vain.

    ``tokens`` is the length that was asked for where the whole answer had to come, 0 for its first
    text. A client may cut its time short or ask for an answer that takes long, and have no version
    shut out or rolled back by it. But what hangs under an application that always cuts a little
    must not stay for that: what counts is the time a version really had, the settings' patience or
    a fair share of the whole, for a request that is no longer than the settings' own.
    """
    enough = budget.share >= FAIR_SHARE or had >= rules.patience_seconds
    return enough and tokens <= rules.max_tokens


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
    return Budget(min(seconds, allowed), min(seconds / allowed, 1.0))
