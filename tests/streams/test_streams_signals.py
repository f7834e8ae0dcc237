"""Each signal by itself: what it goes by, within which delay, and how it is credited."""

from __future__ import annotations

from datetime import timedelta
from math import nan
from pathlib import Path
from typing import Any

import pytest

from contracts.clock import ManualClock
from contracts.errors import SettingsError
from contracts.events import GuardReport, Message, Timings
from contracts.settings import SIGNALS, Settings, Streams, load_settings
from streams.signals import BUILT_IN, Signal, load_signals
from streams.waits import waits_of
from tests.streams.conftest import UNPROVEN
from tests.streams.rewarding_by_hand import component, rewarded
from tests.streams.worker_in_memory import Log, MemoryStore, WorkerInMemory, final_rewards


def later(decision: Any, seconds: float) -> Any:
    return decision.time + timedelta(seconds=seconds)


def only(name: str, **fields: Any) -> dict[str, Any]:
    return {name: component(**fields)}


def test_the_settings_know_every_signal_there_is() -> None:
    assert BUILT_IN.keys() == SIGNALS


def test_acceptance_and_dwell_are_signals(decision: Any, feedback: Any) -> None:
    made = decision()
    assert rewarded(made, feedback(made, "acceptance", score=-1.0)).value == -0.5
    times = [feedback(made, "dwell", seconds=seconds) for seconds in (3.0, 12.0)]
    weights = only("dwell", scale=30.0)
    assert rewarded(made, *times, **weights).value == pytest.approx(0.5)
    assert (
        rewarded(made, *times, *times, feedback(made, "dwell", seconds=99.0), **weights).value == 1
    )


@pytest.mark.parametrize(
    ("name", "signal"),
    [
        ("tool", "tool"),
        ("tool/search", "tool"),
        ("build", "build"),
        ("test/unit", "build"),
        ("re-ask", "re-ask"),
        ("ticket", "outcome"),
        ("toolbox", "outcome"),
    ],
)
def test_an_outcome_counts_in_one_signal_by_its_name(
    decision: Any, feedback: Any, name: str, signal: str
) -> None:
    made = decision()
    (found,) = rewarded(made, feedback(made, "outcome", name=name, score=-0.5)).components
    assert (found.name, found.value) == (signal, -0.5)


def test_the_same_question_again_is_a_re_ask_and_another_one_a_follow_up(decision: Any) -> None:
    made = decision("How do I reset the red router at home?")
    again = decision("how do I reset the red router at home please?", time=later(made, 30))
    other = decision("What does it cost?", time=later(made, 30))
    weights: dict[str, Any] = {"re-ask": component(), "follow-up": component(0.25)}
    reward = rewarded(made, following=again, **weights)
    assert (reward.value, reward.components[0].event_ids) == (-1.0, (again.id,))
    assert rewarded(made, following=other, **weights).value == 0.25
    too_late = decision(made.messages[0].content, time=later(made, 601))
    assert rewarded(made, following=too_late, **weights).status == "censored"


def test_a_told_re_ask_holds_over_what_is_seen(decision: Any, feedback: Any) -> None:
    made = decision()
    again = decision(time=later(made, 1))
    told = feedback(made, "outcome", name="re-ask", score=-0.25)
    (found,) = rewarded(made, told, following=again, **only("re-ask")).components
    assert (found.value, found.event_ids) == (-0.25, (told.id,))


def test_cost_latency_and_escalation_refine_a_reward_and_make_none(
    decision: Any, feedback: Any
) -> None:
    made = decision(action="escalate", timings=Timings(total_seconds=2.0))
    weights: dict[str, Any] = {
        "rating": component(),
        "cost": component(0.1, scale=8.0),
        "latency": component(0.1, scale=4.0),
        "escalation": component(0.2),
    }
    assert rewarded(made, **weights).status == "censored"
    rated = rewarded(made, feedback(made), **weights)
    assert {part.name: part.value for part in rated.components} == {
        "rating": 1.0,
        "cost": -0.5,
        "latency": -0.5,
        "escalation": -1.0,
    }
    assert rated.value == pytest.approx(1.0 - 0.05 - 0.05 - 0.2)


def test_a_signal_counts_within_its_delay_alone(decision: Any, feedback: Any) -> None:
    made = decision()
    slow = feedback(made, "outcome", name="build", time=later(made, 3000))
    assert rewarded(made, slow).status == "censored"
    assert rewarded(made, slow, **only("build", delay_seconds=3600.0)).value == 1.0


@pytest.mark.parametrize(
    ("credit", "shares"), [("last", [0.0, 1.0]), ("all", [1.0, 1.0]), ("decay", [0.5, 1.0])]
)
def test_feedback_on_the_session_is_credited_by_the_declared_rule(
    decision: Any, feedback: Any, credit: Any, shares: list[float]
) -> None:
    first = decision()
    second = decision(time=later(first, 10))
    resolved = feedback(
        first, "outcome", name="ticket", decision_id="", score=1.0, time=later(first, 20)
    )
    weights = only("outcome", credit=credit)
    found = [
        rewarded(first, resolved, following=second, **weights).value or 0.0,
        rewarded(second, resolved, following=first, **weights).value or 0.0,
    ]
    assert found == shares


def test_feedback_on_the_session_is_not_about_what_came_after_it(
    decision: Any, feedback: Any
) -> None:
    made = decision()
    before = feedback(made, "outcome", decision_id="", time=later(made, -1))
    assert rewarded(made, before).status == "censored"


def test_what_a_user_takes_back_no_longer_holds(decision: Any, feedback: Any) -> None:
    made = decision()
    first, second = feedback(made, score=0.5), feedback(made, score=-1.0, time=later(made, 1))
    back = feedback(made, "retraction", retracts=second.id, time=later(made, 700))
    assert rewarded(made, first, second, back).value == 0.5
    stranger = feedback(made, "retraction", retracts=second.id, user_id="somebody-else")
    assert rewarded(made, first, second, stranger).value == -1.0
    long_after = feedback(made, "retraction", retracts=second.id, time=later(made, 8 * 86_400))
    assert rewarded(made, first, second, long_after).value == -1.0


def test_the_guards_own_answer_is_rewarded_by_what_the_policy_did_alone(
    decision: Any, feedback: Any
) -> None:
    made = decision(guard=GuardReport(action="blocked", where="question"))
    again = decision(time=later(made, 1))
    weights: dict[str, Any] = {
        "rating": component(),
        "re-ask": component(),
        "follow-up": component(),
    }
    assert rewarded(made, feedback(made), following=again, **weights).status == "censored"


POLITE = """
from streams.signals import Signal

def polite(evidence, component):
    return Signal(1.0 if "please" in evidence.decision.text else -1.0, "polite@3")
"""


def test_a_package_brings_a_signal_by_an_entry_point(
    decision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "polite-3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: polite\nVersion: 3\n")
    (about / "entry_points.txt").write_text("[headrace.signals]\npolite = polite_signal:polite\n")
    (tmp_path / "polite_signal.py").write_text(POLITE)
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = rewarded(decision(answer="Hold it, please."), **only("polite"))
    assert (reward.value, reward.components[0].rule) == (1.0, "polite@3")
    assert waits_of(Streams(reward=only("polite", delay_seconds=9e5))).by_kind["rating"] == 9e5
    settings = {"HEADRACE_STREAMS__REWARD": '{"polite": {"weight": 1}}'}
    assert load_settings(environment=settings).streams.reward["polite"].weight == 1.0


@pytest.mark.parametrize(
    "given",
    [
        Signal(0.5, None),  # type: ignore[arg-type] # a package may give anything
        Signal(0.5, "polite@3", None),  # type: ignore[arg-type] # likewise
        Signal(0.5, "polite@3", (5,)),  # type: ignore[arg-type] # likewise
        Signal(0.5, "x" * 1_000_000),
        Signal(0.5, "polite@3", tuple(f"id-{number}" for number in range(100_000))),
        Signal(nan, "polite@3"),
        Signal("much", "polite@3"),  # type: ignore[arg-type] # likewise
        0.5,
    ],
    ids=["no rule", "no ids", "ids of numbers", "long rule", "many ids", "nan", "text", "number"],
)
def test_what_a_package_gives_that_no_reader_could_take_is_left_out(
    given: Any, decision: Any, feedback: Any, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = {**BUILT_IN, "polite": lambda *_: given}
    monkeypatch.setattr("streams.reward.load_signals", lambda _: brought)
    weighed = {"rating": component(0.5), "polite": component(0.5)}
    streams = Streams(window_seconds=60.0, quarantine=UNPROVEN, reward=weighed)
    worker = WorkerInMemory(Settings(streams=streams), log := Log(), MemoryStore(), clock)
    log.append(made := decision(time=clock.now()))
    log.append(feedback(made))
    worker.read_all()
    clock.advance(100)
    worker.close()
    assert final_rewards(worker.sent) == {made.id: ("final", 0.5)}


def test_a_signal_nobody_brings_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"'polite'.*known signals are acceptance"):
        load_signals(["polite"])
    with pytest.raises(SettingsError, match=r"'polite'.*streams\.reward.*re-ask"):
        load_settings(environment={"HEADRACE_STREAMS__REWARD": '{"polite": {"weight": 1}}'})


def test_a_question_without_words_is_not_asked_again(decision: Any) -> None:
    made = decision(messages=(Message(role="system", content="x"),))
    again = decision(messages=made.messages, time=later(made, 1))
    assert rewarded(made, following=again, **only("re-ask")).status == "censored"
