"""Which feedback is not trusted, and that it is kept, counted and not learned."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from contracts.audit import AuditChain
from contracts.broker import Received
from contracts.clock import ManualClock
from contracts.codec import MAX_VALUE_BYTES, decode, encode
from contracts.events import DeadLetter, Decision, Event, Feedback, Reward
from contracts.settings import Gateway, Settings, Streams
from contracts.settings import Quarantine as Rules
from contracts.tokens import RELEASE_HEADER, acceptance_mark, feedback_token, release_mark
from contracts.topics import DECISIONS, FEEDBACK
from streams.flow import Flow
from streams.quarantine import Quarantine
from tests.messages import says
from tests.streams.conftest import UNPROVEN
from tests.streams.worker_in_memory import Log, MemoryStore, WorkerInMemory

SECRET = "a secret of the tests, long enough for it"
WINDOW = 60.0
START = ManualClock().now()
LONG = "You can reset the router by holding the red button for ten seconds."


def rules(**fields: Any) -> Quarantine:
    streams = Streams(window_seconds=WINDOW, quarantine=Rules(proof="optional", **fields))
    return Quarantine(Settings(streams=streams))


def why(quarantine: Quarantine, feedback: Feedback) -> str | None:
    reason = quarantine.reason(feedback)
    return reason and reason.partition(":")[0]


def test_a_user_may_say_so_much_in_a_window_and_again_in_the_next(
    decision: Any, feedback: Any
) -> None:
    quarantine, made = rules(max_feedback=3), decision(time=START)
    said = [feedback(made) for _ in range(5)]
    assert [why(quarantine, one) for one in said] == [
        None,
        None,
        None,
        "over-active",
        "over-active",
    ]
    assert why(quarantine, feedback(made, user_id="user-2")) is None
    later = feedback(made, time=START + timedelta(seconds=WINDOW))
    assert why(quarantine, later) is None


def test_feedback_read_twice_counts_once(decision: Any, feedback: Any) -> None:
    quarantine, made = rules(max_feedback=2), decision(time=START)
    once, other, third = (feedback(made) for _ in range(3))
    for one in (once, once, once, other):
        assert why(quarantine, one) is None
    assert why(quarantine, third) == "over-active"
    assert why(quarantine, once) is None


def test_the_same_long_text_of_more_users_than_allowed_is_set_aside(
    decision: Any, feedback: Any
) -> None:
    quarantine, made = rules(max_alike=2), decision(time=START)

    def corrected(user: str, text: str = LONG) -> str | None:
        return why(quarantine, feedback(made, "correction", correction=says(text), user_id=user))

    assert [corrected("a"), corrected("a"), corrected("b"), corrected("c")] == [
        *(None, None, None),
        "look-alike",
    ]
    assert corrected("d", f"  {LONG.upper()} ") == "look-alike"
    assert corrected("d", "Hold it.") is None
    assert corrected("d", LONG.replace("ten", "five")) is None
    assert why(quarantine, feedback(made, "report", reason=LONG, user_id="e")) == "look-alike"


class Run:
    """A flow over partition 0 that wants proof."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        settings = Settings(
            streams=Streams(window_seconds=WINDOW), gateway=Gateway(feedback_secret=SECRET)
        )
        self.flow = Flow(settings, AuditChain("test", self.clock, lambda: "id"), source="test")
        self.flow.assign([0])
        self.sent: list[Event] = []

    def read(self, *events: Decision | Feedback) -> None:
        for event in events:
            topic = DECISIONS if isinstance(event, Decision) else FEEDBACK
            reach = self.flow.partitions[0].decisions
            if topic is FEEDBACK:
                reach = self.flow.partitions[0].feedback
            record = encode(topic, event, source="test")
            offset = reach.offsets.next or 0
            received = Received(topic, 0, offset, record.key, record.value, record.headers)
            self.take(received)

    def take(self, record: Received) -> None:
        self._take(self.flow.read([record], self.clock.now()))

    def close(self) -> None:
        self.clock.advance(2 * WINDOW)
        for reach in (self.flow.partitions[0].decisions, self.flow.partitions[0].feedback):
            reach.see(reach.offsets.next or 0, 0, self.clock.now())
        self._take(self.flow.close(self.clock.now(), 100))

    def _take(self, step: Any) -> None:
        self.flow.settle(step)
        self.sent += [decode(r.topic, r.value, r.headers) for r in step.records]

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.sent if isinstance(event, kind)]


def proven(feedback: Feedback) -> Feedback:
    token = feedback_token(
        SECRET.encode(), feedback.decision_id, feedback.session_id, feedback.user_id
    )
    return msgspec.structs.replace(feedback, token=token)


def marked(feedback: Feedback) -> Feedback:
    mark = acceptance_mark(
        SECRET.encode(),
        feedback.id,
        feedback.decision_id,
        feedback.session_id,
        feedback.user_id,
    )
    return msgspec.structs.replace(feedback, token=mark)


def test_a_token_and_a_gateways_mark_are_proof_and_nothing_else_is(
    decision: Any, feedback: Any
) -> None:
    run = Run()
    made = decision(time=run.clock.now())
    told = [proven(feedback(made, score=0.5)), marked(feedback(made, "report"))]
    on_session = proven(feedback(made, "outcome", decision_id="", score=1.0))
    stolen = msgspec.structs.replace(feedback(made), token=told[1].token)
    others = [feedback(made), feedback(made, token="0" * 64), stolen]
    run.read(made, *told, on_session, *others)
    run.close()
    letters = run.of(DeadLetter)
    assert [letter.detail.partition(":")[0] for letter in letters] == 3 * ["unproven"]
    assert {letter.reason for letter in letters} == {"quarantined"}
    assert run.flow.counts["quarantined"] == 3
    (reward,) = run.of(Reward)
    behind = {event_id for part in reward.components for event_id in part.event_ids}
    assert behind == {one.id for one in (*told, on_session)}
    assert run.flow.partitions[0].feedback.offsets.committable == 6


def test_feedback_on_a_decision_of_another_session_is_set_aside(
    decision: Any, feedback: Any
) -> None:
    run = Run()
    made = decision(time=run.clock.now())
    run.read(made, proven(feedback(made, session_id="other")))
    (letter,) = run.of(DeadLetter)
    assert (letter.reason, letter.detail.partition(":")[0]) == ("quarantined", "foreign")


def test_what_was_let_out_of_the_quarantine_lets_nothing_else_out(
    decision: Any, feedback: Any
) -> None:
    run = Run()
    made = [decision(time=run.clock.now(), session_id=f"s-{n}") for n in range(2)]
    run.read(*made)
    let_out = encode(FEEDBACK, feedback(made[0], score=0.5), source="test")
    mark = (RELEASE_HEADER, release_mark(SECRET.encode(), let_out.value).encode())
    id_of_it = decode(FEEDBACK, let_out.value, let_out.headers).id
    forged = encode(FEEDBACK, feedback(made[1], score=-1.0, id=id_of_it), source="test")
    for offset, record in enumerate((let_out, forged)):
        headers = [*record.headers, mark]
        run.take(Received(FEEDBACK, 0, offset, record.key, record.value, headers))
    run.close()
    assert [letter.offset for letter in run.of(DeadLetter)] == [1]
    assert [reward.value for reward in run.of(Reward)] == [0.5, None]


def test_unclaimed_feedback_that_grows_when_written_again_is_a_letter_and_stops_nothing(
    decision: Any, feedback: Any
) -> None:
    clock = ManualClock()
    settings = Settings(streams=Streams(window_seconds=WINDOW, quarantine=UNPROVEN))
    worker = WorkerInMemory(settings, log := Log(), MemoryStore(), clock)
    said = feedback(decision(time=START), "correction", correction=says("LONG"))
    given = {name: value for name, value in msgspec.to_builtins(said).items() if value is not None}
    value = msgspec.json.encode(given)
    value = value.replace(b"LONG", b"x" * (MAX_VALUE_BYTES - len(value)))
    log.append(said)
    (record,) = log.records[FEEDBACK.name]
    log.records[FEEDBACK.name] = [msgspec.structs.replace(record, value=value)]
    worker.read_all()
    clock.advance(settings.streams.unclaimed_seconds + WINDOW)
    worker.close()
    (letter,) = worker.of(DeadLetter)
    assert (letter.offset, letter.detail.partition(":")[0]) == (0, "unknown")
    assert letter.value_bytes > MAX_VALUE_BYTES
    assert log.committed[FEEDBACK.name] == 1
