"""The join as a state machine: what it is told, and which windows that closes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from contracts.clock import ManualClock
from contracts.settings import RewardComponent, Settings, Streams
from guard.rules import compile_rules
from streams.attribution import MAX_WAITING, Attribution
from streams.offsets import Offsets
from streams.safety import judge
from streams.session import MAX_FEEDBACK, Turn
from streams.waits import waits_of

START = ManualClock().now()
WINDOW = 60.0


class Join:
    """An attribution fed as the worker feeds it."""

    def __init__(self, **streams: Any) -> None:
        rules = {
            "reward": {"rating": RewardComponent(weight=1.0)},
            "unclaimed_seconds": WINDOW,
            **streams,
        }
        self.state = Attribution(waits_of(Streams(window_seconds=WINDOW, **rules)))

    def open(self, decision: Any, offset: int, at: float = 0.0) -> Turn:
        self.state.decisions.offsets.read(offset)
        safety = judge(compile_rules(Settings()))(decision, START)
        return self.state.open(decision, safety, offset=offset, trace={}, now=_at(at))[0]

    def heard(self, turn: Turn) -> list[str]:
        session = self.state.sessions[turn.decision.session_id]
        return [heard.event.id for heard in session.evidence(turn, self.state.waits).heard]

    def join(self, feedback: Any, offset: int, at: float = 0.0) -> str:
        self.state.feedback.offsets.read(offset)
        outcome = self.state.join(feedback, offset=offset, now=_at(at))
        if outcome not in ("joined", "waiting"):
            self.state.feedback.offsets.done(offset)
        return outcome

    def see(self, feedback_end: int, at: float, decisions_end: int = 0) -> None:
        self.state.feedback.see(feedback_end, 0, _at(at))
        self.state.decisions.see(decisions_end, 0, _at(at))

    def close(self) -> list[str]:
        due = self.state.due(100)
        for turn in due:
            turn.revision = 0
            self.state.finish(turn)
        self.state.release()
        return [turn.decision.id for turn in due]

    def committable(self) -> tuple[int | None, int | None]:
        return self.state.decisions.offsets.committable, self.state.feedback.offsets.committable


def _at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_window_closes_when_it_is_over_and_not_before(decision: Any) -> None:
    join, made = Join(), decision(time=START)
    join.open(made, 0)
    join.see(0, WINDOW - 1)
    assert join.close() == []
    join.see(0, WINDOW)
    assert join.close() == [made.id]


def test_feedback_unread_at_the_end_of_the_window_is_read_first(
    decision: Any, feedback: Any
) -> None:
    join, made = Join(), decision(time=START)
    turn = join.open(made, 0, at=1000)
    join.see(1, 2000)
    assert join.close() == []
    assert join.join(feedback(made), 0, at=2001) == "joined"
    join.see(1, 2002)
    assert join.close() == [made.id]
    assert len(join.heard(turn)) == 1


def test_an_end_that_keeps_moving_does_not_keep_a_window_open(decision: Any, feedback: Any) -> None:
    join, made, other = Join(), decision(time=START), decision()
    join.open(made, 0)
    for number in range(20):
        join.see(number + 10, WINDOW + number)
        join.join(feedback(other), number)
    assert join.close() == [made.id]


def test_feedback_that_comes_first_waits_for_its_decision(decision: Any, feedback: Any) -> None:
    join, made = Join(), decision(time=START)
    assert join.join(feedback(made), 0) == "waiting"
    assert len(join.heard(join.open(made, 0, at=1))) == 1


def test_feedback_nobody_claims_is_given_up_after_a_window(decision: Any, feedback: Any) -> None:
    join, made = Join(), decision(time=START)
    join.join(feedback(made), 0)
    join.see(1, WINDOW - 1)
    assert list(join.state.unclaimed()) == []
    join.see(1, WINDOW)
    (orphan,) = join.state.unclaimed()
    assert orphan.feedback.decision_id == made.id
    assert list(join.state.unclaimed()) == []
    join.state.forget(made.session_id)
    assert join.state.sessions == {}


def test_of_too_much_waiting_feedback_the_oldest_is_given_up(decision: Any, feedback: Any) -> None:
    join, made = Join(), decision(time=START)
    strangers = [decision(id=f"unknown-{number}") for number in range(MAX_WAITING)]
    for number, stranger in enumerate(strangers):
        assert join.join(feedback(stranger), number) == "waiting"
    assert list(join.state.unclaimed()) == []
    assert join.join(feedback(made), MAX_WAITING) == "waiting"
    (orphan,) = join.state.unclaimed()
    assert orphan.feedback.decision_id == strangers[0].id
    assert len(join.heard(join.open(made, 0))) == 1
    assert join.join(feedback(strangers[0]), MAX_WAITING + 1) == "waiting"
    assert list(join.state.unclaimed()) == []


def test_what_does_not_belong_is_told_apart(decision: Any, feedback: Any) -> None:
    join, made = Join(), decision(time=START)
    join.open(made, 0)
    rating = feedback(made)
    assert join.join(rating, 0) == "joined"
    assert join.join(rating, 1) == "duplicate"
    assert join.join(feedback(made, session_id="other"), 2) == "foreign"
    assert join.join(feedback(made, time=_at(WINDOW + 1)), 3) == "late"
    for number in range(4, MAX_FEEDBACK + 3):
        assert join.join(feedback(made), number) == "joined"
    assert join.join(feedback(made), MAX_FEEDBACK + 3) == "excess"
    join.see(MAX_FEEDBACK + 4, WINDOW)
    join.close()
    assert join.join(rating, MAX_FEEDBACK + 4) == "duplicate"
    assert join.state.holds(made.id)


def test_a_decision_of_the_future_cannot_block_the_partition(decision: Any) -> None:
    join, made = Join(), decision(time=_at(10_000_000))
    join.open(made, 0, at=0)
    join.see(0, WINDOW)
    assert join.close() == [made.id]


def test_a_spooled_decision_waits_for_the_feedback_behind_it(decision: Any, feedback: Any) -> None:
    join, made = Join(), decision(time=START)
    join.open(made, 0, at=1000)
    join.see(0, 1001)
    assert join.close() == []
    assert join.join(feedback(made), 0, at=1002) == "joined"
    join.see(1, 1006)
    assert join.close() == [made.id]


def test_feedback_is_committed_with_its_decision_and_not_before(
    decision: Any, feedback: Any
) -> None:
    join = Join()
    slow, quick = decision(time=_at(50)), decision(time=START)
    join.open(slow, 0, at=50)
    join.open(quick, 1, at=50)
    join.join(feedback(quick), 0, at=50)
    join.see(1, WINDOW)
    assert join.close() == [quick.id]
    assert join.committable() == (0, 0)  # read again, `quick` must find its feedback again
    join.see(1, WINDOW + 50)
    assert join.close() == [slow.id]
    assert join.committable() == (2, 1)


@given(st.permutations(range(8)))
def test_offsets_are_committable_up_to_the_oldest_in_work(order: list[int]) -> None:
    offsets = Offsets()
    assert all(offsets.read(number) for number in range(8))
    assert not offsets.read(3)
    for count, number in enumerate(order):
        offsets.done(number)
        left = set(range(8)) - set(order[: count + 1])
        assert offsets.committable == min(left, default=8)


def test_feedback_after_the_window_was_closed_touches_its_decision(
    decision: Any, feedback: Any
) -> None:
    join, made = Join(), decision(time=START)
    turn = join.open(made, 0)
    join.see(0, WINDOW)
    assert join.close() == [made.id]
    assert join.state.touched() == []
    slow = feedback(made, time=_at(1))
    assert join.join(slow, 0, at=WINDOW + 1) == "revising"
    assert join.state.touched() == [turn]
    assert join.heard(turn) == [slow.id]
    assert join.committable() == (1, 1)


def test_a_final_signal_closes_its_window_at_once(decision: Any, feedback: Any) -> None:
    join, made = Join(final_signals=("outcome:ticket", "report")), decision(time=START)
    join.open(made, 0)
    assert join.join(feedback(made, "outcome", name="tool"), 0) == "joined"
    assert join.close() == []
    assert join.join(feedback(made, "outcome", name="ticket"), 1) == "joined"
    assert join.join(feedback(made, "report"), 2) == "joined"
    assert join.close() == [made.id]
    join.see(3, WINDOW)
    assert join.close() == []


def test_feedback_on_a_session_is_committed_with_the_last_decision_it_is_about(
    decision: Any, feedback: Any
) -> None:
    join = Join()
    first, second = decision(time=START), decision(time=_at(10))
    join.open(first, 0)
    join.open(second, 1, at=10)
    about_both = feedback(first, "outcome", decision_id="", time=_at(20))
    assert join.join(about_both, 0, at=20) == "joined"
    join.see(1, WINDOW)
    assert join.close() == [first.id]
    assert join.committable() == (1, 0)
    join.see(1, WINDOW + 10)
    assert join.close() == [second.id]
    assert join.committable() == (2, 1)


def test_feedback_on_a_session_waits_for_the_sessions_first_decision(
    decision: Any, feedback: Any
) -> None:
    join, made = Join(), decision(time=START)
    early = feedback(made, decision_id="", time=_at(1))
    assert join.join(early, 0) == "waiting"
    assert join.heard(join.open(made, 0)) == [early.id]


def test_a_session_at_rest_is_forgotten_and_one_in_work_is_not(
    decision: Any, feedback: Any
) -> None:
    join, made = Join(), decision(time=START)
    join.open(made, 0)
    join.join(feedback(made), 0)
    join.state.forget(made.session_id)
    assert join.state.holds(made.id)
    join.see(1, WINDOW)
    join.close()
    join.state.forget(made.session_id)
    assert not join.state.holds(made.id)
    assert join.state.sessions == {}
