"""What a replay makes of a log that comes slowly, is learned slowly or goes away meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from kafka.errors import KafkaConnectionError, KafkaTimeoutError, OffsetOutOfRangeError

from contracts import broker
from contracts.errors import DeadlineError, UnavailableError
from contracts.settings import Kafka
from contracts.topics import SAMPLES
from learner import replay_log
from learner.replay_log import LogPart

LEARNING_SECONDS = 1000.0
KAFKA = Kafka(bootstrap="kafka-1:9092")


class Log:
    """Three records, the last of which is waited for; stands for the broker's reader."""

    def __init__(self, *_: object, **__: object) -> None:
        self.polls: list[list[int]] = [[0, 1], [], [2]]
        self.next = 0

    def positions(self) -> dict[str, int]:
        return {replay_log.PLACE: self.next}

    def ends(self) -> dict[str, int]:
        return {replay_log.PLACE: 3}

    def poll(self, seconds: float) -> list[broker.Received]:
        found = self.polls.pop(0) if self.polls else []
        self.next += len(found)
        return [broker.Received(SAMPLES, 0, offset, None, b"", []) for offset in found]

    def close(self) -> None:
        pass


class SilentLog(Log):
    def poll(self, seconds: float) -> list[broker.Received]:
        return []


class CutLog(Log):
    def poll(self, seconds: float) -> list[broker.Received]:
        raise OffsetOutOfRangeError({replay_log.PLACE: self.next})


class LostLog(Log):
    """Its broker goes away after the first question."""

    def ends(self) -> dict[str, int]:
        raise KafkaTimeoutError("no answer")


class NoLog(Log):
    """Its broker is away, or refuses who reads."""

    def __init__(self, *_: object, **__: object) -> None:
        raise KafkaConnectionError("nobody there")


class Hours:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    found = Hours()
    for module in (broker, replay_log):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=found.monotonic))
    return found


def _read_from(monkeypatch: pytest.MonkeyPatch, log: type[Log]) -> None:
    for module in (broker, replay_log):
        monkeypatch.setattr(module, "Reader", log)


def test_the_time_that_learning_takes_is_no_silence_of_the_log(
    monkeypatch: pytest.MonkeyPatch, hours: Hours
) -> None:
    _read_from(monkeypatch, Log)
    for records in (
        LogPart(KAFKA, 0, 3).records(),
        broker.read_to_end(KAFKA, (SAMPLES,), "test-reader"),
    ):
        found = []
        for record in records:
            found.append(record.offset)
            hours.now += LEARNING_SECONDS
        assert found == [0, 1, 2]


def test_the_broker_is_waited_for_while_nothing_is_learned(
    monkeypatch: pytest.MonkeyPatch, hours: Hours
) -> None:
    """Whoever learns says that it works; a wait is told by its silence."""
    inside: list[bool] = []
    asked: list[bool] = []

    class Watched(Log):
        def positions(self) -> dict[str, int]:
            asked.append(bool(inside))
            return super().positions()

        def ends(self) -> dict[str, int]:
            asked.append(bool(inside))
            return super().ends()

        def poll(self, seconds: float) -> list[broker.Received]:
            asked.append(bool(inside))
            return super().poll(seconds)

    @contextmanager
    def waiting() -> Iterator[None]:
        assert not inside
        inside.append(True)
        yield
        inside.clear()

    _read_from(monkeypatch, Watched)
    for _ in LogPart(KAFKA, 0, 3, waiting).records():
        assert not inside
    assert len(asked) > 8
    assert all(asked)


def test_silence_ends_a_replay_with_the_address_of_the_broker(
    monkeypatch: pytest.MonkeyPatch, hours: Hours
) -> None:
    _read_from(monkeypatch, SilentLog)
    with pytest.raises(DeadlineError, match=KAFKA.bootstrap):
        list(LogPart(KAFKA, 0, 3).records())
    with pytest.raises(DeadlineError, match="reading samples to the end"):
        list(broker.read_to_end(KAFKA, (SAMPLES,), "test-reader"))
    assert hours.now < LEARNING_SECONDS


def test_a_log_that_is_cut_while_it_is_read_again_is_not_begun_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _read_from(monkeypatch, CutLog)
    with pytest.raises(UnavailableError, match=r"longer retention\.ms"):
        list(LogPart(KAFKA, 0, 3).records())


@pytest.mark.parametrize("log", [LostLog, NoLog])
def test_a_broker_that_refuses_or_goes_away_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, log: type[Log]
) -> None:
    _read_from(monkeypatch, log)
    said = f"samples at {KAFKA.bootstrap} could not be read: .*'headrace doctor'"
    with pytest.raises(DeadlineError, match=said):
        list(LogPart(KAFKA, 0, 3).records())
