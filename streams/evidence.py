"""What there is to reward one decision by: pure functions of the session's decisions and feedback.

The order in which they came does not matter here, nor does it matter whether one came twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from contracts.events import Decision, Feedback, Safety
from contracts.settings import RewardComponent
from streams.waits import Waits


class Heard(Struct, frozen=True):
    """Feedback in force. ``later`` is None when it is on the decision itself; of feedback on the
    session, the number of decisions between this one and it."""

    event: Feedback
    later: int | None = None

    def share(self, component: RewardComponent) -> float:
        """Return how much of it the decision is credited with, in [0, 1]."""
        if self.later is None or component.credit == "all":
            return 1.0
        if component.credit == "last":
            return float(self.later == 0)
        return float(component.decay**self.later)


class Evidence(Struct, frozen=True, kw_only=True):
    """A decision, its safety, what was said about it, and the decision that followed it.

    ``heard`` is ordered by event time and id. ``window_seconds`` is how long a signal is waited
    for that declares no delay of its own.
    """

    decision: Decision
    safety: Safety
    window_seconds: float
    heard: tuple[Heard, ...] = ()
    following: Decision | None = None

    def of(self, component: RewardComponent, *kinds: str) -> list[tuple[Feedback, float]]:
        """Return feedback of these kinds with its share, that came within the component's delay."""
        end = self.decision.time + self._delay(component)
        return [
            (heard.event, share)
            for heard in self.heard
            if heard.event.kind in kinds
            and heard.event.time <= end
            and (share := heard.share(component)) > 0.0
        ]

    def newest(self, kind: str) -> Feedback | None:
        """Return the newest feedback of a kind; of simultaneous ones the one of the greatest id."""
        return next((h.event for h in reversed(self.heard) if h.event.kind == kind), None)

    def followed_by(self, component: RewardComponent) -> Decision | None:
        """Return the session's next decision, when it came within the component's delay."""
        following = self.following
        if following is None or following.time > self.decision.time + self._delay(component):
            return None
        return following

    def _delay(self, component: RewardComponent) -> timedelta:
        return timedelta(seconds=component.delay_seconds or self.window_seconds)


def in_force(feedback: Iterable[Feedback], waits: Waits) -> list[Feedback]:
    """Return the feedback that was not taken back, by event time and id.

    A retraction holds for feedback by the same user on the same decision or session that came
    before it, by no more than ``revision_seconds``. It cannot be retracted itself.
    """
    events = sorted(feedback, key=age)
    retracted: dict[tuple[str | None, str, str], list[datetime]] = {}
    for event in events:
        if event.kind == "retraction":
            about = (event.retracts, event.user_id, event.decision_id)
            retracted.setdefault(about, []).append(event.time)
    if not retracted:
        return events
    reach = timedelta(seconds=waits.revision_seconds)

    def stands(event: Feedback) -> bool:
        times = retracted.get((event.id, event.user_id, event.decision_id), ())
        return not any(event.time <= at <= event.time + reach for at in times)

    return [event for event in events if event.kind != "retraction" and stands(event)]


def heard_by(
    decision: Decision,
    moments: Sequence[tuple[datetime, str]],
    feedback: Iterable[Feedback],
    waits: Waits,
) -> tuple[Heard, ...]:
    """Return which of the session's feedback in force is about one decision.

    ``moments`` are the (time, id) of all the session's decisions. Feedback on the session is about
    those that it came after.
    """
    own = (decision.time, decision.id)
    found = []
    for event in feedback:
        if event.decision_id == decision.id:
            found.append(Heard(event))
        elif not event.decision_id and decision.time <= event.time <= decision.time + waits.reach(
            event
        ):
            later = sum(own < moment and moment[0] <= event.time for moment in moments)
            found.append(Heard(event, later))
    return tuple(found)


def age(event: Feedback) -> tuple[datetime, str]:
    """Return what orders feedback: its time, and its id among simultaneous ones."""
    return event.time, event.id
