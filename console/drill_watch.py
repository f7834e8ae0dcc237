"""Follows the log while a drill runs: what the controller does, whom the bad version reached."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

from contracts.broker import Reader
from contracts.errors import CodecError
from contracts.events import AuditRecord, Decision, Event, Rollout
from contracts.settings import Kafka
from contracts.topics import AUDIT, DECISIONS, ROLLOUTS
from serving.rollout_state import newer

CLIENT_ID = "headrace-drill"
FOLLOWED = (ROLLOUTS, DECISIONS, AUDIT)
UNDER_WAY = ("shadow", "canary")

End = Literal["refused", "rolled-back", "promoted", "undecided"]


class Ending(Struct, frozen=True, kw_only=True):
    """How the controller was done with a version, and when."""

    ended: End
    reason: str
    at: datetime


class Reached(Struct, frozen=True, kw_only=True):
    """Whom the version reached: users who saw an answer by it, its answers to users, those of them
    that the guard kept back (``kept_back``), answers that nobody saw (``shadow``), and answers that
    another version or rule gave in its place (``replaced``)."""

    users: int
    answers: int
    kept_back: int
    shadow: int
    replaced: int
    requests: int


class Watch:
    """What happened to one version since the watch began; call `follow` again and again."""

    def __init__(self, kafka: Kafka, policy: str) -> None:
        self.policy = policy
        self.state: Rollout | None = None
        self._decided: set[str] = set()
        self._reader = Reader(kafka, FOLLOWED, CLIENT_ID, from_end=True)
        self.about("")

    def about(self, version: str) -> None:
        """From here on watch this version, and count anew."""
        self.version = version
        self.ending: Ending | None = None
        self.superseded = False
        self.began: datetime | None = None
        self.exposed_at: datetime | None = None
        self._users: set[str] = set()
        self._answers = self._kept_back = self._shadow = self._replaced = self._requests = 0

    def follow(self, seconds: float) -> None:
        """Take in what comes within ``seconds``."""
        for record in self._reader.poll(seconds):
            if record.topic is AUDIT and self.version.encode() not in (record.value or b""):
                continue
            try:
                self.take(record.event())
            except CodecError:
                continue

    def take(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, Rollout) and event.policy == self.policy:
            held, self.state = self.state, newer(self.state, event)
            if self.state is event and held is not event:
                self._take_state(event)
        elif isinstance(event, Decision) and event.assignment.policy == self.policy:
            self._take_decision(event)
        elif isinstance(event, AuditRecord) and event.subject == self.version:
            self.superseded = self.superseded or event.action == "release.superseded"

    def _take_state(self, state: Rollout) -> None:
        if not self.version or self.ending is not None:
            return
        if state.candidate is not None and state.candidate.version == self.version:
            self.began = self.began or state.started_at or state.time
            if state.phase == "canary" and state.weight > 0.0:
                self.exposed_at = self.exposed_at or state.time
        elif state.judged == self.version and state.phase == "refused":
            self._end("refused", state)
        elif state.judged == self.version and state.phase == "rolled-back":
            self._end("rolled-back", state)
        elif state.stable.version == self.version:
            self._end("promoted", state)

    def _end(self, ended: End, state: Rollout) -> None:
        self.ending = Ending(ended=ended, reason=state.reason, at=state.time)

    def _take_decision(self, decision: Decision) -> None:
        if decision.id in self._decided:
            return
        self._decided.add(decision.id)
        if not self.version:
            return
        given = decision.assignment
        if given.arm == "shadow":
            self._shadow += given.policy_version == self.version
            return
        self._requests += self.ending is None and self.began is not None
        if given.policy_version == self.version:
            self._answers += 1
            guard = decision.guard
            if guard is not None and guard.action != "passed" and guard.where == "answer":
                self._kept_back += 1
            else:
                self._users.add(decision.user_id)
        elif f"canary: {self.version[:12]}" in (decision.error or ""):
            self._replaced += 1

    def reached(self) -> Reached:
        """Return whom the version has reached."""
        return Reached(
            users=len(self._users),
            answers=self._answers,
            kept_back=self._kept_back,
            shadow=self._shadow,
            replaced=self._replaced,
            requests=self._requests,
        )

    def has_read(self, decisions: set[str]) -> bool:
        """Return whether all these decisions were taken in."""
        return decisions <= self._decided

    def under_way(self) -> bool:
        """Return whether the version is in a rollout at this moment."""
        state = self.state
        return (
            state is not None
            and state.phase in UNDER_WAY
            and state.candidate is not None
            and state.candidate.version == self.version
        )

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
