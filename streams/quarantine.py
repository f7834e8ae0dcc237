"""Which feedback is not trusted: unproven, of an over-active user, or of users who sound alike.

What is set aside is kept whole for a person to look at (`contracts.dead_letters`), counted, and
not learned. Counts are of what was read here since the worker began, per window of event time.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TypeVar

from contracts.events import Feedback, text_of
from contracts.settings import Settings
from contracts.tokens import is_proven

Place = TypeVar("Place")

MAX_COUNTED = 50_000
"""Users and texts counted at once; beyond it the oldest counts are dropped."""

MAX_USERS = 1_000
"""Users remembered per text: more say nothing new."""


class Quarantine:
    """Judges feedback as it is read; not for several threads at once."""

    def __init__(self, settings: Settings) -> None:
        self._rules = settings.streams.quarantine
        self._window = settings.streams.window_seconds
        secret = settings.gateway.feedback_secret
        self._secret = secret.encode() if self._rules.proof == "required" else None
        self._events: OrderedDict[tuple[str, int], dict[str, None]] = OrderedDict()
        self._alike: OrderedDict[tuple[bytes, int], dict[str, None]] = OrderedDict()

    def reason(self, feedback: Feedback) -> str | None:
        """Return why feedback is set aside, None when it is trusted."""
        if self._secret is not None and not is_proven(self._secret, feedback):
            return "unproven: no valid token; send the one that came with the answer"
        return self._over_active(feedback) or self._looks_alike(feedback)

    def _over_active(self, feedback: Feedback) -> str | None:
        place = (feedback.user_id, self._number(feedback))
        said = _counted(self._events, place, feedback.id, self._rules.max_feedback + 1)
        if said <= self._rules.max_feedback:
            return None
        return f"over-active: more than {self._rules.max_feedback} by this user in a window"

    def _looks_alike(self, feedback: Feedback) -> str | None:
        text = feedback.reason or ""
        if feedback.correction is not None:
            text = text_of(feedback.correction)
        words = " ".join(text.lower().split())
        if len(words) < self._rules.alike_characters:
            return None
        place = (blake2b(words.encode(), digest_size=16).digest(), self._number(feedback))
        users = _counted(self._alike, place, feedback.user_id, MAX_USERS)
        if users <= self._rules.max_alike:
            return None
        return f"look-alike: more than {self._rules.max_alike} users sent this text in a window"

    def _number(self, feedback: Feedback) -> int:
        return int(feedback.time.timestamp() // self._window)


def _counted(
    counts: OrderedDict[Place, dict[str, None]], place: Place, name: str, limit: int
) -> int:
    """Add a name at a place and return how many different ones it has."""
    names = counts.setdefault(place, {})
    counts.move_to_end(place)
    while len(counts) > MAX_COUNTED:
        counts.popitem(last=False)
    if name in names:
        return list(names).index(name) + 1
    if len(names) < limit:
        names[name] = None
        return len(names)
    return limit + 1
