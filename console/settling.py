"""Waits until a run has come to rest: windows closed, samples learned, the last canary judged.

Each wait is named and bounded; one that runs out is said and the run goes on to its report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event as Flag

from console.waiting import Shown, wait_until
from contracts.broker import Reader
from contracts.clock import SystemClock
from contracts.errors import CodecError, DeadlineError
from contracts.events import Decision, Event, Release, Reward, Rollout, Sample
from contracts.heartbeat import FRESH_SECONDS, read_heartbeat
from contracts.settings import Kafka, Settings
from contracts.topics import DEAD_LETTERS, DECISIONS, RELEASES, REWARDS, ROLLOUTS, SAMPLES
from serving.rollout_state import newer

FOLLOWED = (DECISIONS, REWARDS, SAMPLES, RELEASES, ROLLOUTS, DEAD_LETTERS)
FOLLOW_SECONDS = 30.0
WINDOW_EXTRA_SECONDS = 60.0
TAKEN = ("samples", "revised", "dropped", "judged", "superseded", "silent", "others")
"""Counts of the learner, in one of which each sample is that does not wait for its batch."""

LEARNER_SECONDS = 180.0
ROLLOUT_SECONDS = 20.0
"""Time for a verdict on what is there: without users a canary gets no more evidence."""


class Follower:
    """Collects the events of a run as they come."""

    def __init__(self, kafka: Kafka) -> None:
        self.events: list[Event] = []
        self._reader = Reader(kafka, FOLLOWED, "headrace-demo")
        self._decided: set[str] = set()
        self._rewarded: set[str] = set()
        self._samples: set[str] = set()
        self._rollouts: dict[str, Rollout] = {}
        self.releases = 0

    def follow(self) -> None:
        """Take in all that is in the log now; DeadlineError when the broker gives nothing."""
        ends = self._reader.ends()
        deadline = time.monotonic() + FOLLOW_SECONDS
        while any(at < ends[place] for place, at in self._reader.positions().items()):
            if time.monotonic() > deadline:
                raise DeadlineError(f"following the log of the run: nothing for {FOLLOW_SECONDS} s")
            for record in self._reader.poll(0.2):
                deadline = time.monotonic() + FOLLOW_SECONDS
                try:
                    self._take(record.event())
                except CodecError:
                    continue

    def _take(self, event: Event) -> None:
        self.events.append(event)
        match event:
            case Decision() if event.assignment.arm != "shadow":
                self._decided.add(event.id)
            case Reward():
                self._rewarded.add(event.decision_id)
            case Sample():
                self._samples.add(event.id)
            case Release():
                self.releases += 1
            case Rollout():
                self._rollouts[event.policy] = newer(self._rollouts.get(event.policy), event)

    @property
    def decisions(self) -> int:
        """Return how many decisions are in the log."""
        return len(self._decided)

    def open_windows(self) -> int:
        """Return how many decisions have no reward yet."""
        return len(self._decided - self._rewarded)

    @property
    def samples(self) -> int:
        """Return how many samples are in the log."""
        return len(self._samples)

    def canary(self) -> str:
        """Return the version under test, "" when none is."""
        under_way = (state.candidate for state in self._rollouts.values())
        return next((candidate.version for candidate in under_way if candidate), "")

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()


def settle(settings: Settings, follower: Follower, answered: int, shown: Shown, stop: Flag) -> None:
    """Wait for the decisions, the rewards, the learner and the rollout, in this order."""

    def decisions() -> str:
        follower.follow()
        left = answered - follower.decisions
        return f"{left} of {answered} decisions not in the log yet" if left > 0 else ""

    def windows() -> str:
        follower.follow()
        left = follower.open_windows()
        return f"{left} decisions without a reward" if left else ""

    def learner() -> str:
        follower.follow()
        return learner_missing(settings, follower.samples)

    def rollout() -> str:
        follower.follow()
        version = follower.canary()
        return f"canary {version[:12]} is being judged" if version else ""

    window = settings.streams.window_seconds
    waits: tuple[tuple[str, Callable[[], str], float], ...] = (
        ("the decisions", decisions, WINDOW_EXTRA_SECONDS),
        ("the attribution windows", windows, window + WINDOW_EXTRA_SECONDS),
        ("the learner", learner, LEARNER_SECONDS),
        ("the rollout", rollout, ROLLOUT_SECONDS),
    )
    for name, missing, seconds in waits:
        try:
            took = wait_until(name, missing, seconds, shown, stop)
            shown.say(f"  {name} settled after {took:.1f} s")
        except DeadlineError as error:
            shown.say(f"  gave up on {error}")


def learner_missing(settings: Settings, samples: int) -> str:
    """Return "" when the learner has taken in all samples but an unfinished batch."""
    beat = read_heartbeat(settings.state_dir, "learner")
    if beat is None or beat.age_seconds(SystemClock().now()) > FRESH_SECONDS:
        return "the learner's heartbeat"
    left = samples - sum(beat.counts.get(name, 0) for name in TAKEN)
    return f"{left} samples to learn" if left >= settings.learner.batch_samples else ""
