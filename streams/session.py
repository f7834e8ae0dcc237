"""One session as a partition's worker knows it: its decisions in time, and all feedback on them."""

from __future__ import annotations

from bisect import bisect_right, insort
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct, field

from contracts.events import Decision, Feedback, Safety
from streams.evidence import Evidence, heard_by, in_force
from streams.waits import Waits

MAX_FEEDBACK = 64
"""Feedback events kept per decision, and as many on a session itself."""

MAX_INDEXED = 64
"""Decisions of a session whose places are remembered, the newest."""


class RewardFigures(Struct, array_like=True, frozen=True):
    """What is counted in features of a decision that has its reward."""

    value: float | None = None
    re_asked: bool = False
    reports: int = 0


class Turn(Struct, kw_only=True):
    """A decision of a session, and how far its reward has come.

    ``decided_at`` is the decision's time, but no later than it was read. ``held`` are offsets of
    feedback that stay uncommitted with it. ``again``: a run before this one may have sent a reward
    of it, which it did not live to note. ``revision``, ``content``, ``value``, ``status`` and
    ``re_asked`` are those of the reward sent last; the revision is -1 before the first.
    ``reports`` are those heard of by then.
    """

    decision: Decision
    safety: Safety
    trace: dict[str, str]
    offset: int
    decided_at: datetime
    deadline: datetime
    ready_at: datetime
    state: Literal["open", "closing", "closed", "released"] = "open"
    final: bool = False
    again: bool = False
    held: list[int] = field(default_factory=list)
    revision: int = -1
    content: str = ""
    value: float | None = None
    status: str = ""
    re_asked: bool = False
    reports: int = 0

    @property
    def figures(self) -> RewardFigures:
        """Return what the reward sent last is counted as."""
        return RewardFigures(self.value, self.re_asked, self.reports)

    @property
    def moment(self) -> tuple[datetime, str]:
        """Return what orders the decisions of a session."""
        return self.decision.time, self.decision.id


class Arrival(Struct, kw_only=True):
    """Feedback that was read; ``joined`` once a decision that it is about was seen.

    ``heard_at`` is its time, but no later than it was read: what says it is of the future must not
    make a feature row newer than all that follow.
    ``let_go``: no decision in work holds its offset back, so that after a crash it need not be read
    again, whatever decision comes later that it is about too.
    """

    feedback: Feedback
    offset: int
    heard_at: datetime
    drop_at: datetime
    joined: bool = False
    let_go: bool = False

    def is_report_of(self, turn: Turn) -> bool:
        """Say whether somebody reports that decision."""
        feedback = self.feedback
        return feedback.kind == "report" and feedback.decision_id == turn.decision.id


class Place(Struct, array_like=True, frozen=True):
    """Where a decision is in the log, and which reward of it was sent last, if one was."""

    decision_id: str
    offset: int
    time: datetime
    revision: int = -1
    content: str = ""
    value: float | None = None
    re_asked: bool = False
    reports: int = 0

    @property
    def is_rewarded(self) -> bool:
        """Say whether a reward was sent: of other decisions the log is read again anyway."""
        return self.revision >= 0


class Index(Struct, array_like=True, frozen=True):
    """Where a session is in its partition of the log: kept in the feature store.

    What was forgotten here is read again from there when something late concerns it.
    """

    partition: int = -1
    places: tuple[Place, ...] = ()
    feedback: tuple[int, ...] = ()


class Session(Struct, kw_only=True):
    """The state of one session; ``index`` is what was known of it before it came into memory."""

    id: str
    turns: dict[str, Turn] = field(default_factory=dict)
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    moments: list[tuple[datetime, str]] = field(default_factory=list)
    index: Index = Index()

    def add(self, turn: Turn) -> None:
        """Take in a decision that is not here yet."""
        self.turns[turn.decision.id] = turn
        insort(self.moments, turn.moment)

    def evidence(self, turn: Turn, waits: Waits) -> Evidence:
        """Return what there is to reward a decision by, as of now."""
        place = bisect_right(self.moments, turn.moment)
        following = self.turns[self.moments[place][1]] if place < len(self.moments) else None
        known = [arrival.feedback for arrival in self.arrivals.values()]
        return Evidence(
            decision=turn.decision,
            safety=turn.safety,
            window_seconds=waits.window_seconds,
            heard=heard_by(turn.decision, self.moments, in_force(known, waits), waits),
            following=following.decision if following else None,
        )

    def about(self, feedback: Feedback, reach: timedelta) -> list[Turn]:
        """Return the decisions here that feedback is about, the oldest first."""
        if feedback.decision_id:
            turn = self.turns.get(feedback.decision_id)
            return [turn] if turn else []
        end = bisect_right(self.moments, (feedback.time, "\uffff"))
        found = (self.turns[name] for _, name in self.moments[:end])
        return [turn for turn in found if feedback.time <= turn.decision.time + reach]

    def before(self, turn: Turn, reach: timedelta) -> list[Turn]:
        """Return the decisions that a new one may change: those it came after."""
        end = bisect_right(self.moments, turn.moment)
        found = (self.turns[name] for _, name in self.moments[: max(0, end - 1)])
        return [one for one in found if turn.decision.time <= one.decision.time + reach]

    def has_room_for(self, feedback: Feedback) -> bool:
        """Say whether less feedback than allowed is kept on the same decision, or the session."""
        same = sum(a.feedback.decision_id == feedback.decision_id for a in self.arrivals.values())
        return same < MAX_FEEDBACK

    def newest_time(self, turn: Turn) -> datetime:
        """Return when the last thing happened that bears, or bore, on a decision's reward."""
        times = [
            arrival.heard_at
            for arrival in self.arrivals.values()
            if arrival.feedback.decision_id in ("", turn.decision.id)
        ]
        return max([turn.decided_at, *times])

    def reports_of(self, turn: Turn) -> int:
        """Return how many reports of a decision there are."""
        return sum(arrival.is_report_of(turn) for arrival in self.arrivals.values())

    def at_rest(self) -> bool:
        """Say whether nothing here is in work, so that the log and the index hold all of it."""
        return all(turn.state == "released" for turn in self.turns.values()) and all(
            arrival.joined for arrival in self.arrivals.values()
        )

    def indexed(self, partition: int) -> Index:
        """Return where all that is known of the session is in the log.

        Feedback that a decision in work holds back is left out: both are read again after a crash.
        """
        places = {place.decision_id: place for place in self.index.places}
        for turn in self.turns.values():
            is_released = turn.state == "released"
            places[turn.decision.id] = Place(
                turn.decision.id,
                turn.offset,
                turn.decision.time,
                turn.revision if is_released else -1,
                turn.content if is_released else "",
                turn.value if is_released else None,
                turn.re_asked if is_released else False,
                turn.reports if is_released else 0,
            )
        newest = sorted(places.values(), key=lambda place: (place.time, place.decision_id))
        offsets = {
            *self.index.feedback,
            *(arrival.offset for arrival in self.arrivals.values() if arrival.let_go),
        }
        return Index(
            partition, tuple(newest[-MAX_INDEXED:]), tuple(sorted(offsets)[-4 * MAX_FEEDBACK :])
        )
