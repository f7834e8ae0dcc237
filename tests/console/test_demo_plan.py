"""The demonstration's plan lets an equal candidate through in minutes, and a harmful one never."""

from __future__ import annotations

import random
from collections import deque
from datetime import datetime, timedelta

import msgspec
import pytest
from msgspec.structs import replace

from console.demo_settings import FAST
from contracts.events import Assignment, Reward
from contracts.settings import Settings
from serving.assignment import assign, assign_shadow
from serving.rollout_evidence import EMPTY, CountingRules, EvidenceCounter
from serving.rollout_transition import entered
from serving.rollout_verdict import Verdict, decide
from tests.serving.rollout_states import canary_state
from tests.stream_events import NOON, reward, safety

SETTINGS = msgspec.convert({name: FAST[name] for name in ("rollout", "streams")}, Settings)
RULES, WINDOW = SETTINGS.rollout, SETTINGS.streams.window_seconds
RATE, USERS, HEARD = 6.0, 200, 0.6


class Desk:
    """A rollout as the demonstration's users drive it, on a clock of its own."""

    def __init__(self, seed: int, harm: float) -> None:
        self._rng = random.Random(seed)
        self._harm = harm
        state = replace(canary_state(0.5, salt=str(seed)), evidence=EMPTY, started_at=NOON)
        self._state = entered(state, 0, RULES, NOON)
        self._counter = EvidenceCounter(self._state, CountingRules.of(SETTINGS))
        self._open: deque[tuple[datetime, Reward]] = deque()

    def run(self) -> tuple[str, float]:
        """Return the verdict's action and when it came, in seconds."""
        number = 0
        while True:
            number += 1
            now = NOON + timedelta(seconds=number / RATE)
            self._ask(number, now)
            self._state = replace(self._state, evidence=self._counter.evidence)
            verdict = decide(self._state, RULES, now)
            if verdict.action in ("promote", "roll-back", "pause"):
                return verdict.action, number / RATE
            self._follow(verdict, now)

    def _ask(self, number: int, now: datetime) -> None:
        user = f"user-{self._rng.randrange(USERS)}"
        given = assign(self._state, "p", user)
        self._answer(f"d{number}", user, given, now)
        if self._state.phase == "shadow" and self._rng.random() < self._state.shadow_share:
            self._answer(f"s{number}", user, assign_shadow(self._state, "p"), now)
        value = self._rng.choice((-1.0, 1.0)) if self._rng.random() < HEARD else None
        closed = reward(f"d{number}", value, user, given, decided_at=now)
        self._open.append((now + timedelta(seconds=WINDOW), closed))
        while self._open and self._open[0][0] <= now:
            self._counter.count(self._open.popleft()[1], now)

    def _answer(self, decision: str, user: str, given: Assignment, now: datetime) -> None:
        often = 0.1 if given.arm == "stable" else self._harm
        bad = self._rng.random() < often
        self._counter.count(safety(decision, user, given, violation=bad, decided_at=now), now)

    def _follow(self, verdict: Verdict, now: datetime) -> None:
        if verdict.action == "advance":
            self._state = entered(self._state, self._state.step + 1, RULES, now)
        elif verdict.action == "hold":
            self._state = replace(self._state, held=True)
        self._counter.enter(self._state)


def test_an_equal_candidate_is_promoted_more_often_than_not_within_two_minutes() -> None:
    ends = [Desk(seed, harm=0.1).run() for seed in range(12)]
    in_time = [seconds for action, seconds in ends if action == "promote" and seconds < 120]
    assert len(in_time) >= 9, ends


@pytest.mark.parametrize("seed", range(4))
def test_a_candidate_that_does_much_harm_goes_back(seed: int) -> None:
    assert Desk(seed, harm=0.9).run()[0] == "roll-back"
