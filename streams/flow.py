"""The story of a record: admit, judge safety, join with feedback, reward, send on.

Nothing here reads a clock, a broker or a store. Each step returns what is to be delivered; once it
was, `Flow.settle` lets go of the offsets behind it. A step that is repeated after a crash makes
events with the same ids.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from traceback import format_tb
from typing import Any

import msgspec
from msgspec import Struct

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.codec import trace_headers
from contracts.events import DeadLetter, Decision, Event, Feedback, Message
from contracts.settings import Settings
from contracts.topics import DEAD_LETTERS, DECISIONS, REWARDS, SAMPLES
from contracts.tracing import span
from guard.rules import compile_rules
from streams.admission import admit, dead_letter
from streams.attribution import Attribution, Joined, Pending
from streams.offsets import Offsets
from streams.reward import newest, reward_of, sample_of
from streams.safety import as_if_answered, chosen_action, judge
from streams.step import Step
from streams.tally import Fact
from streams.trail import Trail, rules_of

_log = logging.getLogger(__name__)


class Head(Struct, frozen=True):
    """What identifies and dates an event, read without the rest."""

    id: str
    time: datetime


_heads = msgspec.json.Decoder(Head)


class Flow:
    """The state of one worker: an `Attribution` per partition it owns."""

    def __init__(self, settings: Settings, audit: AuditChain, source: str) -> None:
        self._settings, self.source = settings, source
        self.trail = Trail(audit)
        self._judge = judge(compile_rules(settings))
        self.partitions: dict[int, Attribution] = {}
        self.counts: Counter[str] = Counter()
        self._closed_before: Mapping[str, int] = {}

    @property
    def open_decisions(self) -> int:
        """Return the number of decisions whose windows are open."""
        return sum(len(partition) for partition in self.partitions.values())

    def assign(self, partitions: Iterable[int]) -> None:
        """Begin anew with these partitions: what was in work elsewhere will be read again."""
        seconds = self._settings.streams.window_seconds
        self.partitions = {number: Attribution(seconds) for number in partitions}

    def old(self, records: Iterable[Received], now: datetime) -> list[str]:
        """Return the decisions among records that are in no window here although theirs is over.

        They are late, or another run closed them: whoever remembers must be asked before `read`.
        Fresh decisions never are among them.
        """
        window = timedelta(seconds=self._settings.streams.window_seconds)
        found = []
        for record in records:
            partition = self.partitions.get(record.partition)
            head = _head(record) if record.topic is DECISIONS else None
            if partition is None or head is None or head.time.tzinfo is None:
                continue
            if now - head.time >= window and not partition.holds(head.id):
                found.append(head.id)
        return found

    def read(
        self, records: Iterable[Received], now: datetime, closed: Mapping[str, int] | None = None
    ) -> Step:
        """Take records as they were read; those of partitions not owned are left alone.

        ``closed`` holds decisions closed by another run, with the offset each was read at: at
        that offset it is the decision itself, read again; at any other it is a duplicate.
        """
        step = Step(self.source)
        self._closed_before = closed or {}
        for record in records:
            partition = self.partitions.get(record.partition)
            if partition is None:
                continue
            of_decisions = record.topic is DECISIONS
            reach = partition.decisions if of_decisions else partition.feedback
            if reach.offsets.read(record.offset):
                self._take(step, partition, reach.offsets, record, now)
        return step

    def close(self, now: datetime, limit: int) -> Step:
        """Close windows whose feedback has all been read, and drop feedback nobody claimed."""
        step = Step(self.source)
        for partition in self.partitions.values():
            for pending in partition.due(limit - len(step.closed)):
                self._reward(step, partition, pending, now)
            self._drop_unclaimed(step, partition)
        return step

    def settle(self, step: Step) -> None:
        """Note that a step's records were delivered; adds the facts that may now be counted."""
        for offsets, offset in step.done:
            offsets.done(offset)
        for partition, pending in step.closed:
            partition.finish(pending)
        for number, partition in self.partitions.items():
            step.facts += [_closed_fact(number, pending) for pending in partition.release()]

    def _take(
        self, step: Step, partition: Attribution, offsets: Offsets, record: Received, now: datetime
    ) -> None:
        full_name = record.topic.full_name(self._settings.kafka.prefix)
        trace = trace_headers(record.headers)
        with span("admit", parent=trace):
            event: Event = admit(record, full_name, now)
            try:
                if isinstance(event, Decision):
                    self._open(step, partition, record, event, now)
                elif isinstance(event, Feedback):
                    self._join(step, partition, offsets, record, event, now)
            except Exception as error:  # noqa: BLE001 - a poison record becomes a dead letter
                _tell_failure(f"{full_name}/{record.partition}@{record.offset}", error)
                event = dead_letter(record, full_name, "failed", repr(error), now)
            if isinstance(event, DeadLetter):
                self._refuse(step, offsets, record.offset, event)

    def _open(
        self,
        step: Step,
        partition: Attribution,
        record: Received,
        decision: Decision,
        now: datetime,
    ) -> None:
        closed_at = self._closed_before.get(decision.id, record.offset)
        if partition.holds(decision.id) or closed_at != record.offset:
            self.counts["duplicates"] += 1
            step.done.append((partition.decisions.offsets, record.offset))
            return
        with span("judge safety"):
            safety = self._judge(decision, now)
        self.trail.admitted(step, decision, record)
        step.send(REWARDS, safety)
        self.trail.judged(step, safety)
        if decision.assignment.arm == "shadow":
            # No user saw it: there is no feedback to wait for, nothing to reward, learn or count.
            self.counts["shadows"] += 1
            step.done.append((partition.decisions.offsets, record.offset))
            return
        trace = trace_headers(record.headers)
        pending = partition.open(decision, safety, offset=record.offset, trace=trace, now=now)
        self.counts["decisions"] += 1
        step.facts.append(_opened_fact(record.partition, pending))
        for feedback in pending.feedback:
            self._tell_joined(step, pending, feedback)
        self.counts["feedback"] -= len(pending.refused)
        for orphan, outcome in pending.refused:
            self._let_go(step, partition.feedback.offsets, orphan.offset, orphan.feedback, outcome)

    def _join(
        self,
        step: Step,
        partition: Attribution,
        offsets: Offsets,
        record: Received,
        feedback: Feedback,
        now: datetime,
    ) -> None:
        outcome = partition.join(feedback, offset=record.offset, now=now)
        if outcome in ("joined", "waiting"):
            self.counts["feedback"] += 1
            if outcome == "joined":
                pending = partition.window(feedback.decision_id)
                self._tell_joined(step, pending, feedback)
            self._drop_unclaimed(step, partition)
            return
        self._let_go(step, offsets, record.offset, feedback, outcome)

    def _tell_joined(self, step: Step, pending: Pending, feedback: Feedback) -> None:
        """Show the join in the trace of the decision: the feedback came with another."""
        attributes = {
            "headrace.decision.id": feedback.decision_id,
            "headrace.feedback.id": feedback.id,
        }
        with span("join", parent=pending.trace, attributes=attributes):
            self.trail.joined(step, feedback)

    def _let_go(
        self, step: Step, offsets: Offsets, offset: int, feedback: Feedback, outcome: Joined
    ) -> None:
        """Be done with feedback that joins no window."""
        step.done.append((offsets, offset))
        if outcome == "duplicate":
            self.counts["duplicates"] += 1
        else:
            self._set_aside(step, feedback, outcome)

    def _reward(self, step: Step, partition: Attribution, pending: Pending, now: datetime) -> None:
        decision, safety = pending.decision, pending.safety
        with span("reward", parent=pending.trace, attributes={"headrace.decision.id": decision.id}):
            weights = self._settings.streams.reward
            correction, withheld = None, None
            try:
                reward = reward_of(decision, safety, pending.feedback, weights, now)
                correction, withheld = self._correction(pending, now)
            except Exception as error:  # noqa: BLE001 - poison feedback must not stop the others
                _tell_failure(f"reward of {decision.id}", error)
                self.trail.failed(step, decision, error)
                reward = reward_of(decision, safety, (), weights, now)
            sample = sample_of(decision, reward, safety, pending.feedback, now, correction)
            sent = sample is not None and step.send(SAMPLES, sample)
            step.send(REWARDS, reward)
            sample_id = sample.id if sample is not None and sent else None
            self.trail.closed(step, pending, reward, sample_id, withheld)
        pending.reward = reward
        step.closed.append((partition, pending))
        self.counts["rewards"] += 1
        self.counts["samples"] += sent
        self.counts["corrections_withheld"] += withheld is not None

    def _correction(
        self, pending: Pending, now: datetime
    ) -> tuple[Message | None, dict[str, Any] | None]:
        """Return the answer to imitate, and what the audit says when it may not be.

        A correction is judged as if it had been the answer: the learner imitates no violation.
        """
        event = newest(pending.feedback, "correction")
        if event is None or event.correction is None:
            return None, None
        safety = self._judge(as_if_answered(pending.decision, event.correction), now)
        if not safety.violation:
            return event.correction, None
        return None, {"feedback_id": event.id, "findings": rules_of(safety.findings)}

    def _drop_unclaimed(self, step: Step, partition: Attribution) -> None:
        for orphan in partition.unclaimed():
            step.done.append((partition.feedback.offsets, orphan.offset))
            self._set_aside(step, orphan.feedback, "unknown")

    def _set_aside(self, step: Step, feedback: Feedback, reason: str) -> None:
        """Drop feedback that cannot count any more, leaving a trace of it."""
        self.counts["set_aside"] += 1
        self.trail.dropped(step, feedback, reason)

    def _refuse(self, step: Step, offsets: Offsets, offset: int, letter: DeadLetter) -> None:
        self.counts["dead_letters"] += 1
        step.send(DEAD_LETTERS, letter)
        self.trail.dead_letter(step, letter)
        step.done.append((offsets, offset))


def _head(record: Received) -> Head | None:
    """Return the head of a record, None of one that admission will refuse."""
    try:
        return _heads.decode(record.value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _tell_failure(what: str, error: Exception) -> None:
    """Log where an error arose; its message may quote what people wrote."""
    frames = "".join(format_tb(error.__traceback__))
    _log.error("%s failed: %s\n%s", what, type(error).__name__, frames)


def _opened_fact(partition: int, pending: Pending) -> Fact:
    decision, safety = pending.decision, pending.safety
    return Fact(
        stage="opened",
        partition=partition,
        offset=pending.offset,
        decision_id=decision.id,
        user_id=decision.user_id,
        session_id=decision.session_id,
        policy_version=decision.assignment.policy_version,
        action=chosen_action(decision),
        risk=safety.risk,
        violation=safety.violation,
        time=decision.time,
        trace=pending.trace,
    )


def _closed_fact(partition: int, pending: Pending) -> Fact:
    reward = pending.reward
    assert reward is not None
    return msgspec.structs.replace(
        _opened_fact(partition, pending),
        stage="closed",
        time=max([pending.decision.time, *(event.time for event in pending.feedback)]),
        status=reward.status,
        reward=reward.value,
        revision=reward.revision,
        reports=sum(event.kind == "report" for event in pending.feedback),
    )
