"""The rollout loop: release by release, from verified files to full service or back.

A story in four parts: take in what was written, judge the canary under way, keep the engine's
adapters, begin the next release. Its whole state is the newest event on topic `rollouts`: evidence
and read positions are published in one event, so a controller killed at any moment goes on with
the same rollout and counts each event once. It knows no statistics; see `serving.rollout_verdict`.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import msgspec
from kafka.errors import KafkaError
from msgspec import Struct

from contracts.clock import Clock
from contracts.codec import trace_headers
from contracts.errors import EngineError, HeadraceError, ManifestError
from contracts.events import BASE_VERSION, Candidate, Release, Rollout
from contracts.ids import NewId
from contracts.settings import Settings
from contracts.topics import RELEASES
from contracts.tracing import current_trace_headers, span
from serving.rollout_adapters import Adapters, BrokenVersionError
from serving.rollout_evidence import EMPTY, EvidenceCounter
from serving.rollout_log import RolloutLog, event_or_none
from serving.rollout_state import newer
from serving.rollout_status import RolloutStatus
from serving.rollout_verdict import Verdict, decide, plan_hash

POLL_SECONDS = 0.2
RETRY_SECONDS = 1.0
ENGINE_SECONDS = 3.0
LOAD_ATTEMPTS = 3
REASON_CHARS = 2000

_RELEASES = f"{RELEASES.name}/0"
_log = logging.getLogger("headrace.rollout")


class Pending(Struct, frozen=True):
    """A release that waits for its turn, its place on the topic and its trace."""

    release: Release
    offset: int
    trace: dict[str, str]


class RolloutLoop:
    """Takes one policy's releases through canary to promotion or back; call `run`."""

    def __init__(
        self,
        settings: Settings,
        log: RolloutLog,
        adapters: Adapters,
        status: RolloutStatus,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._rules = settings.rollout
        self._policy = settings.policy.name
        self._log = log
        self._adapters = adapters
        self._status = status
        self._clock = clock
        self._new_id = new_id
        self._state: Rollout | None = None
        self._trace: dict[str, str] = {}
        self._counter: EvidenceCounter | None = None
        self._pending: Pending | None = None
        self._superseded: deque[tuple[Release, str]] = deque()
        self._attempts = 0
        self._published_at = 0.0
        self._engine_at: float | None = None

    @property
    def state(self) -> Rollout:
        """The state last published; only after the first successful step."""
        assert self._state is not None, "no step has succeeded yet"
        return self._state

    def run(self) -> None:
        """Work until the status says stop; what is not there yet is waited for, by name."""
        while not self._status.stopping.is_set():
            try:
                self.step()
            except (HeadraceError, KafkaError) as error:
                _log.warning("%s", error)
                self._status.waiting(str(error))
                self._status.stopping.wait(RETRY_SECONDS)

    def step(self) -> None:
        """Do one round; it may be called again after any error."""
        if self._state is None:
            self._resume()
        self._take_in()
        if self._counter is not None:
            self._judge(self._counter)
        self._publish_counts()
        self._status.working(self.state, self._log.lag(), self._describe())
        self._keep_adapters()
        if self._counter is None and self._pending is not None:
            self._begin(self._pending)

    # --- resume ------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Find the newest state on the topic, or write the first one."""
        state: Rollout | None = None
        self._status.waiting("reading the last state from the broker")
        self._status.forget()
        for read, trace in self._log.history():
            self._status.tally(read)
            held, state = state, newer(state, read)
            if state is not held:
                self._trace = trace
        if state is None:
            state = Rollout(
                id=self._new_id(),
                time=self._clock.now(),
                policy=self._policy,
                epoch=0,
                phase="idle",
                stable=Candidate(version=BASE_VERSION),
            )
            self._log.publish(state, {})
        under_way = state.phase == "canary"
        releases = {_RELEASES: state.positions.get(_RELEASES, 0)}
        self._log.open(state.positions if under_way else releases)
        self._counter = self._recount(state) if under_way else None
        self._state = state

    def _recount(self, state: Rollout) -> EvidenceCounter:
        """Go on from the published evidence, knowing again which events are in it."""
        counter = EvidenceCounter(state)
        for event in self._log.between(state.first_positions, state.positions):
            counter.recall(event)
        return counter

    # --- take in -----------------------------------------------------------------------------

    def _take_in(self) -> None:
        for record in self._log.poll(POLL_SECONDS):
            event = event_or_none(record)
            if event is None:
                where = f"{record.topic.name}/{record.partition} offset {record.offset}"
                _log.warning("%s is not a valid event; skipped", where)
            elif isinstance(event, Release):
                self._queue(Pending(event, record.offset, trace_headers(record.headers)))
            elif self._counter is not None:
                self._counter.count(event)
        while self._superseded:
            release, by = self._superseded[0]
            self._log.audit(
                "release.superseded", release.version, f"newer release {by}", {"by": by}
            )
            self._superseded.popleft()

    def _queue(self, found: Pending) -> None:
        """Keep the newest release; one that is announced twice is taken once."""
        release, known = found.release, {self.state.judged, self.state.stable.version}
        if self.state.candidate is not None:
            known.add(self.state.candidate.version)
        if release.policy != self._policy or release.version in known:
            return
        if self._pending is not None:
            if self._pending.release.version == release.version:
                return
            self._superseded.append((self._pending.release, release.version))
        self._pending, self._attempts = found, 0

    # --- judge -------------------------------------------------------------------------------

    def _judge(self, counter: EvidenceCounter) -> None:
        verdict = self._verdict(counter)
        if verdict.action == "continue" or not (verdict.at_once or self._log.caught_up()):
            return
        self._conclude(counter, verdict)

    def _verdict(self, counter: EvidenceCounter) -> Verdict:
        state = self.state
        if state.plan != self._plan(state.rollout_id or "", state.salt, state.candidate):
            return Verdict("roll-back", "inconclusive: the rules changed under way", at_once=True)
        started = state.started_at or self._clock.now()
        elapsed = (self._clock.now() - started).total_seconds()
        return decide(counter.evidence, self._rules, elapsed, full=counter.full)

    def _conclude(self, counter: EvidenceCounter, verdict: Verdict) -> None:
        candidate = self.state.candidate
        assert candidate is not None, "a canary has a candidate"
        promoted = verdict.action == "promote"
        action = "promoted" if promoted else "rolled-back"
        with span(f"rollout.{action}", links=[self._trace], attributes=self._attributes(candidate)):
            positions = self._positions()
            detail = self._detail() | {
                "evidence": _summary(counter),
                "positions": positions,
                "serves": (candidate if promoted else self.state.stable).version,
            }
            self._log.audit(f"rollout.{action}", candidate.version, verdict.reason, detail)
            self._change(
                phase=action,
                stable=candidate if promoted else self.state.stable,
                candidate=None,
                weight=0.0,
                reason=verdict.reason,
                evidence=counter.evidence,
                positions=positions,
            )
        self._counter = None

    # --- engine ------------------------------------------------------------------------------

    def _keep_adapters(self) -> None:
        """Have the engine load what it forgot, every few seconds."""
        now = self._clock.monotonic()
        if self._engine_at is not None and now - self._engine_at < ENGINE_SECONDS:
            return
        try:
            for version in self._adapters.ensure(self._needed()):
                _log.info("the engine had lost %s; loaded again", version)
        except BrokenVersionError as error:
            self._cannot_serve(error)
        self._engine_at = now

    def _cannot_serve(self, error: BrokenVersionError) -> None:
        """A broken candidate is rolled back; a broken stable version needs a person."""
        candidate = self.state.candidate
        if self._counter is None or candidate is None or candidate.version != error.version:
            raise error
        self._conclude(self._counter, Verdict("roll-back", str(error)[:REASON_CHARS]))

    def _needed(self) -> tuple[Candidate, ...]:
        found = (self.state.stable, self.state.candidate)
        return tuple(candidate for candidate in found if candidate is not None)

    # --- begin -------------------------------------------------------------------------------

    def _begin(self, pending: Pending) -> None:
        release = pending.release
        candidate = Candidate(
            version=release.version, sequence=release.sequence, location=release.location
        )
        with span("rollout.begin", links=[pending.trace], attributes=self._attributes(candidate)):
            refusal = self._admit(candidate)
            if refusal is None:
                self._start(candidate)
            else:
                self._refuse(candidate, refusal)
        self._pending = None

    def _admit(self, candidate: Candidate) -> str | None:
        """Have the engine take the version; return why it cannot be served, None when it can.

        An engine that is away is waited for; one that is well but cannot take this version is
        asked a few times, unless it says that the request itself is at fault.
        """
        self._status.waiting(f"loading and warming up {candidate.version[:12]}")
        try:
            self._adapters.admit(candidate, self._needed())
        except ManifestError as error:
            return str(error)
        except EngineError as error:
            if not self._adapters.healthy():
                raise
            self._attempts += 1
            if not 400 <= error.status < 500 and self._attempts < LOAD_ATTEMPTS:
                raise
            return str(error)
        return None

    def _start(self, candidate: Candidate) -> None:
        rollout_id, salt = self._new_id(), self._new_id()
        plan = self._plan(rollout_id, salt, candidate)
        positions = self._log.positions()
        rules = msgspec.to_builtins(self._rules)
        detail = {"rollout_id": rollout_id, "plan": plan, "rules": rules, "salt": salt}
        detail |= {"stable": self.state.stable.version, "first_positions": positions}
        self._log.audit("rollout.started", candidate.version, "", detail)
        self._change(
            phase="canary",
            candidate=candidate,
            rollout_id=rollout_id,
            salt=salt,
            weight=self._rules.canary_weight,
            reason="",
            started_at=self._clock.now(),
            evidence=EMPTY,
            positions=positions,
            first_positions=positions,
            plan=plan,
            judged=candidate.version,
        )
        self._counter = EvidenceCounter(self.state)

    def _refuse(self, candidate: Candidate, reason: str) -> None:
        reason = reason[:REASON_CHARS]  # it may quote a file or the engine at any length
        self._log.audit(
            "rollout.refused", candidate.version, reason, {"serves": self.state.stable.version}
        )
        self._change(
            phase="refused",
            candidate=None,
            weight=0.0,
            reason=reason,
            positions=self._log.positions(),
            judged=candidate.version,
        )

    # --- write -------------------------------------------------------------------------------

    def _change(self, **changes: Any) -> None:
        """Publish the next epoch; the state changes only once the broker has it."""
        self._trace = current_trace_headers()
        self._write(epoch=self.state.epoch + 1, **changes)
        self._status.tally(self.state)
        _log.info("epoch %s: %s %s", self.state.epoch, self.state.phase, self.state.reason)

    def _publish_counts(self) -> None:
        if self._counter is None or self._counter.evidence == self.state.evidence:
            return
        if self._clock.monotonic() - self._published_at >= self._rules.publish_seconds:
            self._write(evidence=self._counter.evidence, positions=self._positions())

    def _write(self, **changes: Any) -> None:
        state = msgspec.structs.replace(
            self.state, id=self._new_id(), time=self._clock.now(), **changes
        )
        self._log.publish(state, self._trace)
        self._state, self._published_at = state, self._clock.monotonic()

    def _positions(self) -> dict[str, int]:
        """Return where to read on; a release that waits is to be read again."""
        positions = self._log.positions()
        if self._pending is not None:
            positions[_RELEASES] = self._pending.offset
        return positions

    def _plan(self, rollout_id: str, salt: str, candidate: Candidate | None) -> str:
        assert candidate is not None, "a canary has a candidate"
        return plan_hash(self._rules, rollout_id, salt, self.state.stable, candidate)

    def _detail(self) -> dict[str, Any]:
        state = self.state
        return {
            "rollout_id": state.rollout_id,
            "plan": state.plan,
            "stable": state.stable.version,
            "first_positions": state.first_positions,
        }

    def _attributes(self, candidate: Candidate) -> dict[str, str | int]:
        return {
            "headrace.policy": self._policy,
            "headrace.policy_version": candidate.version,
            "headrace.epoch": self.state.epoch,
        }

    def _describe(self) -> str:
        if self._counter is None or self.state.candidate is None:
            return f"serving {self.state.stable.version[:12]}, waiting for a release"
        verdict = self._verdict(self._counter)
        return f"canary {self.state.candidate.version[:12]}: {verdict.reason}"


def _summary(counter: EvidenceCounter) -> dict[str, Any]:
    """Return the evidence for the audit; the offenders' keys can be recounted from the log."""
    found: dict[str, Any] = msgspec.to_builtins(counter.evidence)
    found["offenders"] = len(counter.evidence.offenders)
    return found
