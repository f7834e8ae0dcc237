"""The story of a record: admit, judge safety, join with feedback, reward, send on.

Nothing here reads a clock, a broker or a store. Each step returns what is to be delivered; once it
was, `Flow.settle` lets go of the offsets behind it. A step that is repeated after a crash makes
events with the same ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.codec import to_json, trace_headers
from contracts.events import DeadLetter, Decision, Event, Feedback
from contracts.settings import Settings
from contracts.topics import DEAD_LETTERS, DECISIONS, FEEDBACK, REWARDS
from contracts.tracing import span
from guard.rules import compile_rules
from streams.admission import admit, dead_letter, is_release
from streams.attribution import Attribution, Joined
from streams.facts import closed_fact, opened_fact, revised_fact
from streams.offsets import Offsets
from streams.quarantine import Quarantine
from streams.recall import Wanted, session_of, unknown_sessions, wanted_sessions
from streams.rewarder import Rewarder, tell_failure
from streams.safety import judge
from streams.session import Arrival, Index, Turn
from streams.step import Revision, Step
from streams.trail import Trail
from streams.waits import waits_of


class Flow:
    """The state of one worker: an `Attribution` per partition it owns."""

    def __init__(self, settings: Settings, audit: AuditChain, source: str) -> None:
        self._settings, self.source = settings, source
        self._waits = waits_of(settings.streams)
        self.trail = Trail(audit)
        self.partitions: dict[int, Attribution] = {}
        self.counts: Counter[str] = Counter()
        self._judge = judge(compile_rules(settings))
        self._rewarder = Rewarder(settings.streams, self._judge, self.trail, self.counts)
        self._quarantine = Quarantine(settings)
        self._recalled: dict[str, Attribution] = {}

    @property
    def open_decisions(self) -> int:
        """Return the number of decisions whose windows are open."""
        return sum(len(partition) for partition in self.partitions.values())

    def assign(self, partitions: Iterable[int]) -> None:
        """Begin anew with these partitions: what was in work elsewhere will be read again."""
        self._recalled = {}
        self.partitions = {n: Attribution(self._waits, n) for n in partitions}

    def unknown_sessions(self, records: Iterable[Received]) -> dict[str, int]:
        """Return the sessions of these records that are not in memory, with their partitions."""
        return unknown_sessions(records, self.partitions)

    def wanted(self, records: Iterable[Received], indexes: Mapping[str, Index]) -> list[Wanted]:
        """Return what must be read again from the log before these records are taken."""
        return wanted_sessions(records, self.partitions, indexes)

    def recall(self, wanted: Wanted, records: Iterable[Received], now: datetime) -> None:
        """Take in a session that was forgotten, as it was read again from the log."""
        partition = self.partitions.get(wanted.partition)
        if partition is not None:
            partition.restore(session_of(wanted, records, self._judge, self._waits, now))
            self._recalled[wanted.session_id] = partition

    def read(self, records: Sequence[Received], now: datetime) -> Step:
        """Take records as they were read; those of partitions not owned are left alone."""
        step = Step(self.source, sessions=self._recalled)
        self._recalled = {}
        for record in records:
            partition = self.partitions.get(record.partition)
            if partition is None:
                continue
            of_decisions = record.topic is DECISIONS
            reach = partition.decisions if of_decisions else partition.feedback
            if reach.offsets.read(record.offset):
                self._take(step, partition, reach.offsets, record, now)
                self._revise(step, record, partition, now)
        return step

    def close(self, now: datetime, limit: int) -> Step:
        """Close windows whose feedback has all been read, and drop feedback nobody claimed."""
        step = Step(self.source)
        for partition in self.partitions.values():
            for turn in partition.due(limit - len(step.closed)):
                step.sessions[turn.decision.session_id] = partition
                self._rewarder.close(step, partition, turn, now)
            self._drop_unclaimed(step, partition, now)
        return step

    def settle(self, step: Step) -> None:
        """Note that a step's records were delivered; adds the facts that may now be counted."""
        for offsets, offset in step.done:
            offsets.done(offset)
        for partition, turn in step.closed:
            partition.finish(turn)
        # A turn that was released before has been counted, with the reward it then had.
        counted = [one for one in step.revised if one[1].turn.state == "released"]
        for number, partition in self.partitions.items():
            for turn in partition.release():
                step.sessions[turn.decision.session_id] = partition
                step.facts.append(closed_fact(number, partition, turn))
        for number, revision in counted:
            partition = step.sessions[revision.turn.decision.session_id]
            if self.partitions.get(number) is partition:  # it may have changed hands meanwhile
                step.facts.append(revised_fact(number, partition, revision))
        for session_id, partition in step.sessions.items():
            partition.forget(session_id)

    def _take(
        self, step: Step, partition: Attribution, offsets: Offsets, record: Received, now: datetime
    ) -> None:
        full_name = record.topic.full_name(self._settings.kafka.prefix)
        with span("admit", parent=trace_headers(record.headers)):
            event: Event = admit(record, full_name, now)
            try:
                if isinstance(event, Decision):
                    self._open(step, partition, record, event, now)
                elif isinstance(event, Feedback):
                    self._hear(step, partition, record, event, now)
            except Exception as error:  # noqa: BLE001 - a poison record becomes a dead letter
                tell_failure(f"{full_name}/{record.partition}@{record.offset}", error)
                event = dead_letter(record, full_name, "failed", repr(error), now)
            if isinstance(event, DeadLetter):
                self._refuse(step, event)
                step.done.append((offsets, record.offset))

    def _open(
        self,
        step: Step,
        partition: Attribution,
        record: Received,
        decision: Decision,
        now: datetime,
    ) -> None:
        step.sessions[decision.session_id] = partition
        if self._is_known(step, partition, record, decision):
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
        turn, joined, refused = partition.open(
            decision, safety, offset=record.offset, trace=trace, now=now
        )
        self.counts["decisions"] += 1
        step.facts.append(opened_fact(record.partition, turn))
        for arrival in joined:
            self._tell_joined(step, turn, arrival.feedback)
        self.counts["feedback"] -= len(refused)
        for arrival, outcome in refused:
            self._let_go(step, partition.feedback.offsets, arrival, outcome)

    def _is_known(
        self, step: Step, partition: Attribution, record: Received, decision: Decision
    ) -> bool:
        """Say whether a decision came before; one read again after a crash is counted again."""
        session = partition.sessions.get(decision.session_id)
        known = {p.decision_id: p.offset for p in session.index.places} if session else {}
        if partition.holds(decision.id):
            turn = partition.turn(decision.id)
            if turn.state == "released" and turn.offset == record.offset:
                step.facts.append(opened_fact(record.partition, turn))
                step.facts.append(closed_fact(record.partition, partition, turn))
                return True
        elif known.get(decision.id, record.offset) == record.offset:
            return False
        self.counts["duplicates"] += 1
        return True

    def _hear(
        self,
        step: Step,
        partition: Attribution,
        record: Received,
        feedback: Feedback,
        now: datetime,
    ) -> None:
        step.sessions[feedback.session_id] = partition
        arrival = Arrival(feedback=feedback, offset=record.offset, heard_at=now, drop_at=now)
        if not is_release(record, self._settings):
            reason = self._quarantine.reason(feedback)
            if reason is not None:
                self._set_apart(step, partition, record, feedback, reason, now)
                return
        outcome = partition.join(feedback, offset=record.offset, now=now)
        if outcome in ("joined", "revising", "waiting"):
            self.counts["feedback"] += 1
        if outcome in ("joined", "revising"):
            for turn in partition.about(feedback):
                self._tell_joined(step, turn, feedback)
        if outcome in ("joined", "waiting"):
            self._drop_unclaimed(step, partition, now)
            return
        if outcome == "foreign":
            reason = "foreign: its decision is of another session"
            self._set_apart(step, partition, record, feedback, reason, now)
            return
        self._let_go(step, partition.feedback.offsets, arrival, outcome)

    def _revise(self, step: Step, record: Received, partition: Attribution, now: datetime) -> None:
        """Give those rewards anew that a record changed after they had been given."""
        for turn in partition.touched():
            before = turn.figures
            is_revised = self._rewarder.revise(step, partition, turn, now)
            # Feedback that changes nothing now may do so later: the index must know of it.
            if is_revised or record.topic is not DECISIONS:
                step.revised.append((record.partition, Revision(turn, before, turn.figures)))

    def _tell_joined(self, step: Step, turn: Turn, feedback: Feedback) -> None:
        """Show the join in the trace of the decision: the feedback came with another."""
        attributes = {
            "headrace.decision.id": turn.decision.id,
            "headrace.feedback.id": feedback.id,
        }
        with span("join", parent=turn.trace, attributes=attributes):
            self.trail.joined(step, turn.decision.id, feedback)

    def _let_go(self, step: Step, offsets: Offsets, arrival: Arrival, outcome: Joined) -> None:
        """Be done with feedback that is in no open window."""
        step.done.append((offsets, arrival.offset))
        if outcome == "duplicate":
            self.counts["duplicates"] += 1
        elif outcome != "revising":
            self._set_aside(step, arrival.feedback, outcome)

    def _drop_unclaimed(self, step: Step, partition: Attribution, now: datetime) -> None:
        for arrival in partition.unclaimed():
            step.sessions[arrival.feedback.session_id] = partition
            record = _record_of(arrival, partition.number)
            reason = "unknown: no such decision was served"
            self._set_apart(step, partition, record, arrival.feedback, reason, now)

    def _set_aside(self, step: Step, feedback: Feedback, reason: str) -> None:
        """Drop feedback that cannot count any more, leaving a trace of it."""
        self.counts["set_aside"] += 1
        self.trail.dropped(step, feedback, reason)

    def _set_apart(
        self,
        step: Step,
        partition: Attribution,
        record: Received,
        feedback: Feedback,
        reason: str,
        now: datetime,
    ) -> None:
        """Keep feedback that is not trusted for a person to look at."""
        self.counts["quarantined"] += 1
        full_name = record.topic.full_name(self._settings.kafka.prefix)
        self.trail.dropped(step, feedback, reason.partition(":")[0])
        self._refuse(step, dead_letter(record, full_name, "quarantined", reason, now))
        step.done.append((partition.feedback.offsets, record.offset))

    def _refuse(self, step: Step, letter: DeadLetter) -> None:
        self.counts["dead_letters"] += 1
        step.send(DEAD_LETTERS, letter)
        self.trail.dead_letter(step, letter)


def _record_of(arrival: Arrival, partition: int) -> Received:
    """Return feedback that waited as a record, for its letter; without a value where it has none.

    It may be larger than what was read, and than what may be sent: fields that were left out are
    written.
    """
    feedback = arrival.feedback
    try:
        value = to_json(feedback)
    except RecursionError:
        value = None
    return Received(FEEDBACK, partition, arrival.offset, FEEDBACK.key(feedback).encode(), value, [])
