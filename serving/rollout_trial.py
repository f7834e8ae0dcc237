"""The rollout under way as it is counted: its evidence so far, and what that comes to."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from contracts.clock import Clock
from contracts.events import Event, Rollout
from contracts.settings import Settings
from serving.rollout_evidence import CountingRules, EvidenceCounter
from serving.rollout_plan import identity_of, plan_hash
from serving.rollout_verdict import Verdict, decide


class Trial:
    """Counts for the states it is told of; while none has a candidate there is nothing to count."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._counter: EvidenceCounter | None = None

    @property
    def under_way(self) -> bool:
        """Whether there is something to judge."""
        return self._counter is not None

    def resume(self, state: Rollout, counted: Iterable[Event]) -> None:
        """Go on from a state's evidence, knowing again which events are ``counted`` into it."""
        self._counter = None
        counter = EvidenceCounter(state, CountingRules.of(self._settings))
        for event in counted:
            counter.recall(event)
        self._counter = counter

    def follow(self, state: Rollout) -> None:
        """Count for the state just written: a rollout that began, goes on, or ended."""
        if state.candidate is None:
            self._counter = None
        elif self._counter is None:
            self._counter = EvidenceCounter(state, CountingRules.of(self._settings))
        else:
            self._counter.enter(state)

    def count(self, event: Event) -> None:
        """Count an event, if there is something to count it for."""
        if self._counter is not None:
            self._counter.count(event, self._clock.now())

    def counted(self, state: Rollout) -> Rollout:
        """Return the state with the newest evidence."""
        return replace(state, evidence=self._counter.evidence) if self._counter else state

    def verdict(self, state: Rollout) -> Verdict:
        """Return what the evidence so far comes to; call only while `under_way`."""
        assert self._counter is not None, "a rollout is under way"
        rules = self._settings.rollout
        if state.plan != plan_hash(identity_of(state), self._settings):
            return Verdict("roll-back", "inconclusive: the rules changed under way", at_once=True)
        full = self._counter.full
        return decide(self.counted(state), rules, self._clock.now(), full=full)
