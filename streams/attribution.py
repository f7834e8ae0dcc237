"""The join of decisions with their feedback, in an attribution window: a state machine.

One `Attribution` holds one partition of the topics `decisions` and `feedback`. Its state is a
function of what it was given; it does no input or output and reads no clock. A window closes only
when all feedback that was in the log at the window's end has been read, so that a processor that
was down decides as one that was not.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta
from itertools import islice
from typing import Literal

from msgspec import Struct

from contracts.events import Decision, Feedback, Reward, Safety
from streams.offsets import Offsets

GRACE_SECONDS = 5.0
"""A decision read long after it happened (spooled, or read after a pause) still waits this long
for feedback that travels behind it."""

MAX_FEEDBACK = 64
"""Feedback events kept per decision."""

MAX_WAITING = 10_000
"""Feedback events that wait for their decisions; beyond it the oldest are given up."""

MAX_CLOSED = 200_000
"""Closed decisions remembered, to recognise what comes late or twice."""

Joined = Literal["joined", "waiting", "duplicate", "late", "foreign", "excess"]


class Orphan(Struct, frozen=True, kw_only=True):
    """Feedback that came before its decision."""

    feedback: Feedback
    offset: int
    drop_at: datetime


class Pending(Struct, kw_only=True):
    """A decision whose window is open, and the feedback that reached it."""

    decision: Decision
    safety: Safety
    trace: dict[str, str]
    offset: int
    deadline: datetime
    ready_at: datetime
    feedback: list[Feedback] = []
    feedback_offsets: list[int] = []
    refused: list[tuple[Orphan, Joined]] = []
    reward: Reward | None = None


class Reach(Struct):
    """How far one topic's partition has been read, against ends seen at known moments."""

    offsets: Offsets
    caught_up: datetime | None = None
    end: int | None = None
    seen_at: datetime | None = None

    def see(self, end: int, start: int, now: datetime) -> None:
        """Take note that the log ended at ``end`` at ``now``; ``start`` is where reading began."""
        if self.end is None:
            self.end, self.seen_at = end, now
        position = start if self.offsets.next is None else self.offsets.next
        if position >= self.end:
            self.caught_up = self.seen_at
            self.end, self.seen_at = end, now
            if position >= end:
                self.caught_up, self.end, self.seen_at = now, None, None

    def passed(self, moment: datetime) -> bool:
        """Say whether all that was in the log at a moment has been read."""
        return self.caught_up is not None and self.caught_up >= moment


class Attribution:
    """Open windows of one partition."""

    def __init__(self, window_seconds: float) -> None:
        self._window = timedelta(seconds=window_seconds)
        self._grace = timedelta(seconds=min(GRACE_SECONDS, window_seconds))
        self.decisions, self.feedback = Reach(Offsets()), Reach(Offsets())
        self._open: OrderedDict[str, Pending] = OrderedDict()
        self._closing: dict[str, Pending] = {}
        self._orphans: dict[str, list[Orphan]] = {}
        self._waiting: OrderedDict[int, Orphan] = OrderedDict()
        self._closed: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._unreleased: OrderedDict[int, Pending] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open) + len(self._closing)

    def holds(self, decision_id: str) -> bool:
        """Say whether a decision is or was in a window here."""
        return (
            decision_id in self._open or decision_id in self._closing or decision_id in self._closed
        )

    def window(self, decision_id: str) -> Pending:
        """Return the open window of a decision; KeyError when there is none."""
        return self._open[decision_id]

    def open(
        self,
        decision: Decision,
        safety: Safety,
        *,
        offset: int,
        trace: dict[str, str],
        now: datetime,
    ) -> Pending:
        """Open the window of a decision that is not held yet; feedback that waited for it joins.

        What waited and cannot join is in ``refused``; the caller marks its offsets done.
        A decision dated in the future counts as made now, so that it cannot block the partition.
        """
        deadline = min(decision.time, now) + self._window
        pending = Pending(
            decision=decision,
            safety=safety,
            trace=trace,
            offset=offset,
            deadline=deadline,
            ready_at=max(deadline, now + self._grace),
        )
        self._open[decision.id] = pending
        self._unreleased[offset] = pending
        for orphan in self._orphans.pop(decision.id, ()):
            del self._waiting[orphan.offset]
            outcome = self._add(pending, orphan.feedback, orphan.offset)
            if outcome != "joined":
                pending.refused.append((orphan, outcome))
        return pending

    def join(self, feedback: Feedback, *, offset: int, now: datetime) -> Joined:
        """Give feedback to its decision, or keep it until that comes.

        Unless it was "joined" or is "waiting", the caller marks its offset done.
        """
        pending = self._open.get(feedback.decision_id)
        if pending is not None:
            return self._add(pending, feedback, offset)
        closing = self._closing.get(feedback.decision_id)
        counted = self._closed.get(feedback.decision_id)
        if closing is not None:
            counted = frozenset(event.id for event in closing.feedback)
        if counted is not None:
            return "duplicate" if feedback.id in counted else "late"
        waiting = self._orphans.setdefault(feedback.decision_id, [])
        if any(orphan.feedback.id == feedback.id for orphan in waiting):
            return "duplicate"
        if len(waiting) >= MAX_FEEDBACK:
            return "excess"
        orphan = Orphan(feedback=feedback, offset=offset, drop_at=now + self._window)
        waiting.append(orphan)
        self._waiting[offset] = orphan
        return "waiting"

    def _add(self, pending: Pending, feedback: Feedback, offset: int) -> Joined:
        if feedback.session_id != pending.decision.session_id:
            return "foreign"
        if any(event.id == feedback.id for event in pending.feedback):
            return "duplicate"
        if feedback.time > pending.deadline:
            return "late"
        if len(pending.feedback) >= MAX_FEEDBACK:
            return "excess"
        pending.feedback.append(feedback)
        pending.feedback_offsets.append(offset)
        return "joined"

    def awaits_ends(self, now: datetime) -> bool:
        """Say whether knowing the ends of the log now may close the oldest window."""
        oldest = next(iter(self._open.values()), None)
        return oldest is not None and oldest.ready_at <= now

    def due(self, limit: int) -> list[Pending]:
        """Take out at most ``limit`` decisions whose windows have closed, oldest first."""
        passed = (p for p in self._open.values() if self.feedback.passed(p.ready_at))
        ready = list(islice(passed, limit))
        for pending in ready:
            self._closing[pending.decision.id] = self._open.pop(pending.decision.id)
        return ready

    def unclaimed(self) -> list[Orphan]:
        """Take out, oldest first, feedback whose decision did not come in time, or that is too
        much to keep waiting."""
        found = []
        while self._waiting:
            offset, orphan = next(iter(self._waiting.items()))
            if len(self._waiting) <= MAX_WAITING and not self.decisions.passed(orphan.drop_at):
                break
            del self._waiting[offset]
            found.append(orphan)
            waiting = self._orphans[orphan.feedback.decision_id]
            waiting.remove(orphan)
            if not waiting:
                del self._orphans[orphan.feedback.decision_id]
        return found

    def finish(self, pending: Pending) -> None:
        """Note that all that follows from a closed decision was delivered."""
        self._closing.pop(pending.decision.id, None)
        self._closed[pending.decision.id] = frozenset(event.id for event in pending.feedback)
        while len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)
        self.decisions.offsets.done(pending.offset)

    def release(self) -> list[Pending]:
        """Return decisions that have become committable since the last call, in offset order.

        Feedback becomes committable with its decision and not before: a decision that is read
        again must find it again.
        """
        released = []
        committable = self.decisions.offsets.committable
        while self._unreleased and committable is not None:
            offset, pending = next(iter(self._unreleased.items()))
            if offset >= committable:
                break
            del self._unreleased[offset]
            for place in pending.feedback_offsets:
                self.feedback.offsets.done(place)
            released.append(pending)
        return released
