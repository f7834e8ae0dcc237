"""The jobs of the streams benchmark, for whatever reads and writes the log for them.

`WholeJob` is all that our worker does with a record, by its own functions. `ShortJob` is written
plainly: decode, validate, join, reward, features, with our codec, reward function and feature
writer; it judges no safety, writes no audit, has no window. Both forget in a crash what is open.
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import SystemClock
from contracts.codec import Record, decode, encode
from contracts.events import Decision, Feedback, Safety
from contracts.ids import uuid7_ids
from contracts.settings import Settings
from contracts.topics import REWARDS, SAMPLES
from contracts.tracing import span, start_tracing
from feature_store.views import FeatureRow, Value
from feature_store.writer import FeatureWriter
from streams.evidence import Evidence, Heard
from streams.flow import Flow
from streams.reward import reward_of, rewarding, sample_of
from streams.step import Step
from streams.tally import Fact, Tally

SOURCE = "peer/streams"
FLUSH_SECONDS = 0.1
FLUSH_ROWS = 1000
CLOSE_LIMIT = 10


class Job(Protocol):
    """Takes records of both topics in any order; features are written when `flush` is called."""

    def take(self, record: Received) -> list[Record]:
        """Return what a record leads to. Raises CodecError for what is no valid event."""
        ...

    def wants_flush(self) -> bool:
        """Say whether features have waited for long, or are many."""
        ...

    def flush(self) -> None:
        """Write the features so far, as one batch; it blocks. Not for several threads at once."""
        ...


class WholeJob:
    """All that our worker does but recovery: what it sends, traces and counts."""

    def __init__(self, settings: Settings) -> None:
        self._clock = SystemClock()
        start_tracing("peer", otlp_endpoint=None, span_file=settings.state_dir / "spans.jsonl")
        audit = AuditChain("peer", self._clock, uuid7_ids(self._clock))
        self._flow = Flow(settings, audit, SOURCE)
        self._flow.assign(range(settings.kafka.partitions))
        self._writer = FeatureWriter(settings, self._clock, "peer")
        self._tally = Tally(self._writer.latest, settings.features.window_seconds)
        self._facts: list[Fact] = []
        self._told: list[Record] = []
        self._flushed_at = monotonic()

    def take(self, record: Received) -> list[Record]:
        """Return what a record leads to, and what the last `flush` had to say."""
        now = self._clock.now()
        found, self._told = self._told, []
        for step in (self._flow.read([record], now), self._flow.close(now, CLOSE_LIMIT)):
            self._flow.settle(step)
            found += step.records
            self._facts += step.facts
        return found

    def wants_flush(self) -> bool:
        """Say whether facts have waited for long, or are many."""
        return _wants_flush(len(self._facts), self._flushed_at)

    def flush(self) -> None:
        """Count the facts so far and write the rows, as one batch."""
        facts, self._facts = self._facts, []
        self._flushed_at = monotonic()
        if facts:
            told = Step(SOURCE)
            with span("features", links=[fact.trace for fact in facts]):
                self._writer.write(self._tally.rows(facts))
                self._tally.written()
                self._flow.trail.features(told, facts, written=True)
            self._told += told.records


class ShortJob:
    """Decodes, joins a decision with its rating, rewards, makes a sample and counts users."""

    def __init__(self, settings: Settings) -> None:
        self._window = settings.streams.window_seconds
        self._rules = rewarding(settings.streams)
        self._clock = SystemClock()
        self._writer = FeatureWriter(settings, self._clock, "peer")
        self._decisions: dict[str, Decision] = {}
        self._early: dict[str, Feedback] = {}
        self._users: dict[str, tuple[int, float]] = {}
        self._rows: list[FeatureRow] = []
        self._flushed_at = monotonic()

    def take(self, record: Received) -> list[Record]:
        """Return the reward and the sample that a record leads to; none while one half is missing.

        Raises CodecError for what is no valid event.
        """
        event = decode(record.topic, record.value, record.headers)
        if isinstance(event, Decision):
            feedback = self._early.pop(event.id, None)
            if feedback is not None:
                return self._reward(event, feedback)
            self._decisions[event.id] = event
        elif isinstance(event, Feedback):
            decision = self._decisions.pop(event.decision_id, None)
            if decision is not None:
                return self._reward(decision, event)
            self._early[event.decision_id] = event
        return []

    def wants_flush(self) -> bool:
        """Say whether rows have waited for long, or are many."""
        return _wants_flush(len(self._rows), self._flushed_at)

    def flush(self) -> None:
        """Write the rows so far, as one batch; it blocks. Not for several threads at once."""
        rows, self._rows = self._rows, []
        self._flushed_at = monotonic()
        if rows:
            self._writer.write(rows)

    def _reward(self, decision: Decision, feedback: Feedback) -> list[Record]:
        now = self._clock.now()
        evidence = Evidence(
            decision=decision,
            safety=_unjudged(decision),
            window_seconds=self._window,
            heard=(Heard(feedback),),
        )
        reward = reward_of(evidence, self._rules, now)
        sample = sample_of(evidence, reward)
        self._count(decision, reward.value or 0.0)
        records = [encode(REWARDS, reward, source=SOURCE)]
        if sample is not None:
            records.append(encode(SAMPLES, sample, source=SOURCE))
        return records

    def _count(self, decision: Decision, value: float) -> None:
        rewards, total = self._users.get(decision.user_id, (0, 0.0))
        rewards, total = rewards + 1, total + value
        self._users[decision.user_id] = rewards, total
        rows: dict[tuple[str, str], dict[str, Value]] = {
            ("user", decision.user_id): {
                "decisions": rewards,
                "rewards": rewards,
                "reward_mean": total / rewards,
            },
            ("session", decision.session_id): {"turns": 1, "last_reward": value},
            ("decision", decision.id): {"reward": value, "status": "final"},
        }
        for (view, key), values in rows.items():
            self._rows.append(
                FeatureRow(view=view, key=key, values=values, event_time=decision.time)
            )


def _wants_flush(waiting: int, flushed_at: float) -> bool:
    late = monotonic() - flushed_at >= FLUSH_SECONDS
    return waiting > 0 and (late or waiting >= FLUSH_ROWS)


def _unjudged(decision: Decision) -> Safety:
    return Safety(
        id="none",
        time=decision.time,
        decision_id=decision.id,
        session_id=decision.session_id,
        user_id=decision.user_id,
        assignment=decision.assignment,
        violation=False,
        risk=0.0,
        decided_at=decision.time,
    )


JOBS: dict[str, type[WholeJob | ShortJob]] = {"whole": WholeJob, "short": ShortJob}
