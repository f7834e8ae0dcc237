"""A worker killed in mid-run, a broker restarted under it: none lost, none counted twice."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from console.local_broker import LocalBroker
from contracts.clock import SystemClock
from contracts.events import Reward, Sample
from contracts.settings import RewardComponent
from contracts.topics import REWARDS, SAMPLES
from feature_store.writer import FeatureWriter
from tests.topic_log import events

WINDOW_SECONDS = 2.0
RATED = {"rating": RewardComponent(weight=1.0)}  # the same question comes often in a session


def _send_rated(worker: Any, decision: Any, feedback: Any, first: int, last: int) -> dict[str, Any]:
    expected, sent = {}, []
    for number in range(first, last):
        made = decision(session_id=f"session-{number % 10}", user_id=f"user-{number % 3}")
        expected[made.id] = (number % 21) / 10 - 1
        sent += [made, feedback(made, score=expected[made.id])]
    worker.send(*sent)
    return expected


def _rewards(worker: Any) -> dict[str, set[tuple[str, float | None]]]:
    found = defaultdict(set)
    for reward in events(worker.settings.kafka, REWARDS, Reward):
        found[reward.decision_id].add((reward.id, reward.value))
    return found


def _assert_one_reward_each(worker: Any, expected: dict[str, float]) -> None:
    rewards = _rewards(worker)
    assert rewards.keys() == expected.keys()
    for decision_id, value in expected.items():
        ((_, rewarded),) = rewards[decision_id]
        assert rewarded == value
    samples = {sample.id for sample in events(worker.settings.kafka, SAMPLES, Sample)}
    assert len(samples) == len(expected)


def test_a_killed_worker_is_replaced_without_loss_or_double_counting(
    streams: Any, decision: Any, feedback: Any
) -> None:
    worker = streams(window_seconds=WINDOW_SECONDS, reward=RATED)
    worker.start()
    again = decision(session_id="again", user_id="again")
    worker.send(again, feedback(again, score=0.5))
    expected = {again.id: 0.5, **_send_rated(worker, decision, feedback, 0, 60)}
    worker.until("the first windows", lambda: worker.count("rewards") >= 61)
    expected |= _send_rated(worker, decision, feedback, 60, 120)
    worker.until("open windows", lambda: worker.count("decisions") >= 91)
    worker.kill()
    worker.send(again)
    expected |= _send_rated(worker, decision, feedback, 120, 150)
    worker.start()
    worker.until("all rewards", lambda: worker.is_done(after=30))
    assert worker.stop() == 0
    _assert_one_reward_each(worker, expected)
    assert worker.count("duplicates") >= 1
    latest = FeatureWriter(worker.settings, SystemClock(), "test").latest(
        "user", ["user-0", "user-1", "user-2"]
    )
    assert [values["decisions"] for values, _ in latest.values()] == [50, 50, 50]
    assert [values["rewards"] for values, _ in latest.values()] == [50, 50, 50]


def test_a_worker_outlives_a_restart_of_the_broker(
    streams: Any, decision: Any, feedback: Any, tmp_path: Path
) -> None:
    broker = LocalBroker(tmp_path / "broker").start()
    try:
        worker = streams(kafka=broker.kafka, window_seconds=WINDOW_SECONDS, reward=RATED)
        worker.start()
        expected = _send_rated(worker, decision, feedback, 0, 20)
        worker.until("open windows", lambda: worker.count("decisions") >= 20)
        broker.stop()
        broker.start()
        expected |= _send_rated(worker, decision, feedback, 20, 40)
        worker.until("all rewards", lambda: worker.is_done(after=40))
        _assert_one_reward_each(worker, expected)
        worker.close()
    finally:
        broker.stop()
