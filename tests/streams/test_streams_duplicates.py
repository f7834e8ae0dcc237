"""The same records again, after a restart: one window, one reward, one count."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.clock import ManualClock
from contracts.events import Reward
from contracts.settings import RewardComponent, Settings, Streams
from contracts.settings.streams import DAY
from contracts.topics import DECISIONS, FEEDBACK
from feature_store.writer import FeatureWriter
from tests.streams.conftest import UNPROVEN
from tests.streams.worker_in_memory import Log, WorkerInMemory, final_rewards

WINDOW = 60.0
Start = Callable[..., WorkerInMemory]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("duplicates")
    return Settings(state_dir=folder, streams=Streams(window_seconds=WINDOW, quarantine=UNPROVEN))


@pytest.fixture(scope="module")
def writer(settings: Settings) -> FeatureWriter:
    return FeatureWriter(settings, ManualClock())


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def start(settings: Settings, clock: ManualClock, writer: FeatureWriter, log: Log) -> Start:
    """Start a worker anew: with the same log, store and clock, and nothing remembered."""
    return lambda: WorkerInMemory(settings, log, writer, clock)


def became(decision_id: str, settings: Settings, clock: ManualClock) -> tuple[Any, ...]:
    """Return status, reward and revision of a decision as Feast's own offline join tells them."""
    import pandas as pd

    from feature_store.store import open_store

    asked = pd.DataFrame([{"decision_id": decision_id, "event_timestamp": clock.now()}])
    columns = ("status", "reward", "revision")
    job = open_store(settings).get_historical_features(
        entity_df=asked, features=[f"decision:{name}" for name in columns]
    )
    (row,) = job.to_df().to_dict("records")
    return tuple(row[name] for name in columns)


def test_a_closed_decision_sent_again_after_a_restart_is_a_duplicate(
    decision: Any,
    feedback: Any,
    clock: ManualClock,
    settings: Settings,
    writer: FeatureWriter,
    log: Log,
    start: Start,
) -> None:
    made, first = decision(time=clock.now(), user_id="again", session_id="again"), start()
    log.append(made)
    clock.advance(1)
    log.append(feedback(made, score=0.5, time=clock.now()))
    first.read_all()
    clock.advance(WINDOW)
    first.close()
    assert final_rewards(first.sent) == {made.id: ("final", 0.5)}

    log.append(made)
    second = start()
    second.read_all()
    assert second.of(Reward) == []
    assert second.flow.counts["duplicates"] == 1
    assert log.committed == {DECISIONS.name: 2, FEEDBACK.name: 1}
    assert second.flow.partitions[0].sessions == {}
    assert became(made.id, settings, clock) == ("final", 0.5, 0)
    ((counts, _),) = writer.latest("user", [made.user_id]).values()
    assert (counts["decisions"], counts["rewards"]) == (1, 1)


def test_a_closed_decision_that_was_not_committed_is_read_again_and_not_rewarded_again(
    decision: Any,
    feedback: Any,
    clock: ManualClock,
    writer: FeatureWriter,
    log: Log,
    start: Start,
) -> None:
    made = decision(time=clock.now(), user_id="uncommitted", session_id="uncommitted")
    log.append(made)
    log.append(feedback(made, score=0.5))
    first = start()
    first.read_all()
    clock.advance(WINDOW)
    first.close()
    log.committed = {DECISIONS.name: 0, FEEDBACK.name: 0}

    second = start()
    second.read_all()
    second.close()
    assert (second.of(Reward), second.flow.counts["duplicates"]) == ([], 1)
    assert log.committed == {DECISIONS.name: 1, FEEDBACK.name: 1}
    ((counts, _),) = writer.latest("user", [made.user_id]).values()
    assert (counts["decisions"], counts["rewards"]) == (1, 1)


def test_late_feedback_after_a_restart_revises_the_reward_and_is_counted_once(
    decision: Any,
    feedback: Any,
    clock: ManualClock,
    settings: Settings,
    writer: FeatureWriter,
    log: Log,
    start: Start,
) -> None:
    made = decision(time=clock.now(), user_id="late", session_id="late")
    log.append(made)
    log.append(feedback(made, score=0.5))
    first = start()
    first.read_all()
    clock.advance(WINDOW)
    first.close()
    slow = feedback(made, score=-1.0, time=clock.now())
    for _ in range(2):
        log.append(slow)
    for copies in (1, 0):
        worker = start()
        worker.read_all()
        rewards = worker.of(Reward)
        assert [(reward.revision, reward.value) for reward in rewards] == copies * [(1, -1.0)]
        assert became(made.id, settings, clock) == ("final", -1.0, 1)
        ((counts, _),) = writer.latest("user", [made.user_id]).values()
        assert (counts["rewards"], counts["reward_mean"]) == (1, -1.0)
        log.committed[FEEDBACK.name] = 1


def test_decisions_of_a_clock_that_is_ahead_are_counted_once_when_they_are_read_again(
    decision: Any, clock: ManualClock, writer: FeatureWriter, log: Log, start: Start
) -> None:
    first, began = start(), clock.now()
    for seconds in (0.5, 1.5, 2.5):  # the gateway's clock, half a second ahead of the worker's
        made = began + timedelta(seconds=seconds)
        log.append(decision(time=made, user_id="ahead", session_id="ahead"))
        first.read(DECISIONS)
        clock.advance(1)
    assert log.committed[DECISIONS.name] == 0
    start().read_all()
    ((user, _),) = writer.latest("user", ["ahead"]).values()
    ((session, _),) = writer.latest("session", ["ahead"]).values()
    assert (user["decisions"], user["recent_decisions"], session["turns"]) == (3, 3, 3)


def test_a_signal_that_may_come_late_revises_although_its_session_was_long_silent(
    decision: Any, feedback: Any, clock: ManualClock, log: Log, tmp_path: Path
) -> None:
    month = {"outcome": RewardComponent(weight=1.0, delay_seconds=30 * DAY)}
    streams = Streams(window_seconds=WINDOW, quarantine=UNPROVEN, reward=month)
    settings = Settings(state_dir=tmp_path, streams=streams)
    writer = FeatureWriter(settings, clock)

    def run(*events: Any) -> WorkerInMemory:
        worker = WorkerInMemory(settings, log, writer, clock)
        for event in events:
            log.append(event)
        worker.read_all()
        clock.advance(2 * WINDOW)
        worker.close()
        return worker

    made = decision(time=clock.now(), user_id="slow", session_id="slow")
    run(made)
    clock.advance(20 * DAY)
    run(*(decision(time=clock.now(), user_id="other", session_id=f"o-{n}") for n in range(2)))
    worker = run(feedback(made, "outcome", score=-1.0, time=clock.now()))
    assert final_rewards(worker.sent) == {made.id: ("final", -1.0)}
