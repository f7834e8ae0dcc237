"""The job of the streams benchmark, written plainly: decode, validate, join, reward, features.

It is what the peers run, whatever reads and writes the log for them. It uses our codec, reward
function and feature writer, so that what differs between contestants is the way of the records. It
is simpler than ours: it judges no safety, writes no audit, has no window and forgets in a crash.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from contracts.clock import SystemClock
from contracts.codec import Record, decode, encode
from contracts.events import Decision, Feedback, Safety
from contracts.settings import Settings
from contracts.topics import REWARDS, SAMPLES, Topic
from feature_store.views import FeatureRow, Value
from feature_store.writer import FeatureWriter
from streams.evidence import Evidence, Heard
from streams.reward import reward_of, rewarding, sample_of

SOURCE = "peer/streams"
FLUSH_SECONDS = 0.1
FLUSH_ROWS = 1000


class Job:
    """Takes records of both topics in any order; features are written when `flush` is called."""

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

    def take(
        self, topic: Topic, value: bytes | None, headers: Iterable[tuple[str, bytes]] | None
    ) -> list[Record]:
        """Return the reward and the sample that a record leads to; none while one half is missing.

        Raises CodecError for what is no valid event.
        """
        event = decode(topic, value, headers)
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
        late = monotonic() - self._flushed_at >= FLUSH_SECONDS
        return bool(self._rows) and (late or len(self._rows) >= FLUSH_ROWS)

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
