"""The join of decisions with their feedback, in an attribution window: a state machine.

One `Attribution` holds one partition of the topics `decisions` and `feedback`, session by session.
Its state is a function of what it was given; it does no input or output and reads no clock. A
window closes when all feedback that was in the log at the window's end has been read, so that a
processor that was down decides as one that was not, or when a final signal came. What comes after
that changes the reward all the same: the decision is `touched`, and its reward is sent anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import Literal

from msgspec import Struct

from contracts.events import Decision, Feedback, Safety
from streams.offsets import Offsets
from streams.session import Arrival, Session, Turn
from streams.waits import Waits

GRACE_SECONDS = 5.0
"""A decision read long after it happened (spooled, or read after a pause) still waits this long
for feedback that travels behind it."""

MAX_WAITING = 10_000
"""Feedback events that wait for their decisions; beyond it the oldest are given up."""

Joined = Literal["joined", "revising", "waiting", "duplicate", "late", "foreign", "excess"]


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
    """The sessions of one partition that have something in work."""

    def __init__(self, waits: Waits, number: int = 0) -> None:
        self.waits, self.number = waits, number
        self._window = waits.window
        self._unclaimed = timedelta(seconds=waits.unclaimed_seconds)
        self._grace = timedelta(seconds=min(GRACE_SECONDS, waits.window_seconds))
        self.decisions, self.feedback = Reach(Offsets()), Reach(Offsets())
        self.sessions: dict[str, Session] = {}
        self._session_of: dict[str, str] = {}
        self._due: list[tuple[datetime, int]] = []
        self._final: list[Turn] = []
        self._waiting: OrderedDict[int, tuple[Session, Arrival]] = OrderedDict()
        self._unreleased: OrderedDict[int, Turn] = OrderedDict()
        self._touched: dict[str, Turn] = {}
        self._open = 0

    def __len__(self) -> int:
        return self._open

    def holds(self, decision_id: str) -> bool:
        """Say whether a decision is in a session here."""
        return decision_id in self._session_of

    def turn(self, decision_id: str) -> Turn:
        """Return a decision that is held; KeyError when it is not."""
        return self.sessions[self._session_of[decision_id]].turns[decision_id]

    def about(self, feedback: Feedback) -> list[Turn]:
        """Return the decisions here that feedback is about, the oldest first."""
        return self.sessions[feedback.session_id].about(feedback, self.waits.reach(feedback))

    def open(
        self,
        decision: Decision,
        safety: Safety,
        *,
        offset: int,
        trace: dict[str, str],
        now: datetime,
    ) -> tuple[Turn, list[Arrival], list[tuple[Arrival, Joined]]]:
        """Open the window of a decision that is not held yet; feedback that waited for it joins.

        Returns the decision's turn, the feedback that joined, and what cannot join with the reason:
        the caller marks the offsets of the latter done. A decision dated in the future counts as
        made now, so that it cannot block the partition.
        """
        decided_at = min(decision.time, now)
        deadline = decided_at + self._window
        turn = Turn(
            decision=decision,
            safety=safety,
            trace=trace,
            offset=offset,
            decided_at=decided_at,
            deadline=deadline,
            ready_at=max(deadline, now + self._grace),
            again=now >= deadline,
        )
        session = self._session(decision.session_id)
        self._enter(session, turn)
        self._open += 1
        self._unreleased[offset] = turn
        heappush(self._due, (turn.ready_at, offset))
        for earlier in session.before(turn, self.waits.near):
            self._touch(earlier)
        joined, refused = self._claim(session, turn)
        return turn, joined, refused

    def join(self, feedback: Feedback, *, offset: int, now: datetime) -> Joined:
        """Give feedback to its decisions, or keep it until they come.

        Unless it was "joined" or is "waiting", the caller marks its offset done.
        """
        other = self._session_of.get(feedback.decision_id, feedback.session_id)
        if other != feedback.session_id:
            return "foreign"
        session = self._session(feedback.session_id)
        if feedback.id in session.arrivals or offset in session.index.feedback:
            return "duplicate"
        if not session.has_room_for(feedback):
            return "excess"
        arrival = Arrival(
            feedback=feedback,
            offset=offset,
            heard_at=min(feedback.time, now),
            drop_at=now + self._unclaimed,
        )
        outcome = self._join(session, arrival)
        if outcome == "waiting":
            self._waiting[offset] = (session, arrival)
        if outcome != "late":
            session.arrivals[feedback.id] = arrival
        return outcome

    def restore(self, session: Session) -> None:
        """Take in what was read again of a session: turns that were released, joined feedback."""
        held = self._session(session.id)
        held.index = session.index
        for turn in session.turns.values():
            if turn.decision.id not in held.turns:
                self._enter(held, turn)
        for name, arrival in session.arrivals.items():
            held.arrivals.setdefault(name, arrival)

    def awaits_ends(self, now: datetime) -> bool:
        """Say whether knowing the ends of the log now may close the oldest window."""
        return bool(self._due) and self._due[0][0] <= now

    def due(self, limit: int) -> list[Turn]:
        """Take out at most ``limit`` decisions whose windows have closed, the longest due first."""
        found: list[Turn] = []
        while self._final and len(found) < limit:
            self._take_due(found, self._final.pop())
        while self._due and len(found) < limit and self.feedback.passed(self._due[0][0]):
            # What a final signal closed may be released long before: it is not kept for this.
            turn = self._unreleased.get(heappop(self._due)[1])
            if turn is not None:
                self._take_due(found, turn)
        return found

    def touched(self) -> list[Turn]:
        """Take out the rewarded decisions that something was heard of since the last call."""
        found = [turn for turn in self._touched.values() if turn.revision >= 0]
        self._touched.clear()
        return found

    def unclaimed(self) -> Iterator[Arrival]:
        """Take out, oldest first, feedback whose decision did not come in time, or that is too
        much to keep waiting."""
        while self._waiting:
            offset, (session, arrival) = next(iter(self._waiting.items()))
            if len(self._waiting) <= MAX_WAITING and not self.decisions.passed(arrival.drop_at):
                return
            del self._waiting[offset]
            session.arrivals.pop(arrival.feedback.id, None)
            yield arrival

    def finish(self, turn: Turn) -> None:
        """Note that all that follows from a closed decision was delivered."""
        turn.state = "closed"
        self._open -= 1
        self.decisions.offsets.done(turn.offset)

    def release(self) -> list[Turn]:
        """Return decisions that have become committable since the last call, in offset order.

        Feedback becomes committable with its decision and not before: a decision that is read
        again must find it again.
        """
        released = []
        committable = self.decisions.offsets.committable
        while self._unreleased and committable is not None:
            offset, turn = next(iter(self._unreleased.items()))
            if offset >= committable:
                break
            del self._unreleased[offset]
            turn.state = "released"
            self._let_go_of_feedback(turn)
            released.append(turn)
        return released

    def forget(self, session_id: str) -> None:
        """Drop a session in which nothing is in work: the log and its index hold all of it."""
        session = self.sessions.get(session_id)
        if session is not None and session.at_rest():
            for decision_id in session.turns:
                del self._session_of[decision_id]
            del self.sessions[session_id]

    def _session(self, session_id: str) -> Session:
        found = self.sessions.get(session_id)
        if found is None:
            found = self.sessions[session_id] = Session(id=session_id)
        return found

    def _enter(self, session: Session, turn: Turn) -> None:
        session.add(turn)
        self._session_of[turn.decision.id] = session.id

    def _claim(
        self, session: Session, turn: Turn
    ) -> tuple[list[Arrival], list[tuple[Arrival, Joined]]]:
        """Join what waited in the session and is about this decision."""
        joined: list[Arrival] = []
        refused: list[tuple[Arrival, Joined]] = []
        for arrival in [one for one in session.arrivals.values() if not one.joined]:
            outcome = self._join(session, arrival)
            if outcome == "waiting":
                continue
            del self._waiting[arrival.offset]
            if outcome == "joined":
                joined.append(arrival)
            else:
                del session.arrivals[arrival.feedback.id]
                refused.append((arrival, outcome))
        return joined, refused

    def _join(self, session: Session, arrival: Arrival) -> Joined:
        feedback = arrival.feedback
        reach = self.waits.reach(feedback)
        turns = session.about(feedback, reach)
        if not turns:
            return "waiting"
        if feedback.time > max(turn.deadline for turn in turns) - self._window + reach:
            return "late"
        arrival.joined = True
        unreleased = [turn for turn in turns if turn.state != "released"]
        if unreleased:
            unreleased[-1].held.append(arrival.offset)
        arrival.let_go = not unreleased
        for turn in turns:
            if turn.state == "open" and not turn.final and self.waits.is_final(feedback):
                turn.final = turn.again = True
                self._final.append(turn)
            self._touch(turn)
        return "joined" if unreleased else "revising"

    def _touch(self, turn: Turn) -> None:
        if turn.state != "open":
            self._touched[turn.decision.id] = turn

    def _take_due(self, found: list[Turn], turn: Turn) -> None:
        if turn.state == "open":
            turn.state = "closing"
            found.append(turn)

    def _let_go_of_feedback(self, turn: Turn) -> None:
        """Mark the feedback held with a decision done, unless another one still needs it."""
        session = self.sessions[turn.decision.session_id]
        arrivals = {arrival.offset: arrival for arrival in session.arrivals.values()}
        held, turn.held = turn.held, []
        for offset in held:
            arrival = arrivals[offset]
            about = session.about(arrival.feedback, self.waits.reach(arrival.feedback))
            unreleased = [one for one in about if one.state != "released"]
            if unreleased:
                unreleased[-1].held.append(offset)
            else:
                arrival.let_go = True
                self.feedback.offsets.done(offset)
