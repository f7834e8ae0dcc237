"""Asks the rollout controller to do something, and waits until its state shows that it did.

A command is a record on topic `rollout-commands`: nothing but the broker and the controller need to
be alive for it to take effect, and one that finds no controller is done by the next that starts.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from msgspec import Struct

from console.operators import checked_reason, operator_name
from console.rollout_history import command_of
from console.stack_file import read_stack, supervisor_runs
from contracts.broker import Reader, Received, make_producer, send
from contracts.clock import SystemClock
from contracts.codec import encode
from contracts.errors import CodecError, UnavailableError
from contracts.events import AuditRecord, Event, Rollout, RolloutAction, RolloutCommand
from contracts.ids import uuid7_ids
from contracts.settings import Kafka, Settings
from contracts.topics import AUDIT, ROLLOUT_COMMANDS, ROLLOUTS

CLIENT_ID = "headrace-rollout-command"
SOURCE = "headrace/console"
SEND_SECONDS = 10.0
POLL_SECONDS = 0.2
REFUSED = "refused"

Outcome = Literal["done", "refused", "no answer"]


class Answer(Struct, frozen=True, kw_only=True):
    """What became of a command: ``action`` is the controller's own word in the audit."""

    command: RolloutCommand
    outcome: Outcome
    action: str = ""
    reason: str = ""
    stable: str = ""
    seconds: float = 0.0


class _Seen:
    """What was read since the command was sent."""

    def __init__(self, command: RolloutCommand, offset: int) -> None:
        self._command = command
        self._offset = offset
        self.audited: AuditRecord | None = None
        self.state: Rollout | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, AuditRecord) and command_of(event) == self._command.id:
            self.audited = event
        elif isinstance(event, Rollout) and event.policy == self._command.policy:
            place = f"{ROLLOUT_COMMANDS.name}/0"
            if event.positions.get(place, 0) > self._offset:
                self.state = event

    def outcome(self) -> Outcome:
        """A refusal is final once audited; anything else once the state was written after it."""
        if self.audited is None:
            return "no answer"
        if self.audited.action.endswith(REFUSED):
            return "refused"
        return "done" if self.state is not None else "no answer"


def refuse_stopped(settings: Settings) -> None:
    """Raise UnavailableError when the local stack is down and no other broker is named."""
    if not settings.kafka.bootstrap and not supervisor_runs(read_stack(settings.state_dir)):
        raise UnavailableError(
            f"no stack runs in {settings.state_dir}, so nobody would act; start it with "
            "'headrace up', or name your broker in kafka.bootstrap"
        )


def make_command(
    policy: str, action: RolloutAction, version: str, *, reason: str, operator: str
) -> RolloutCommand:
    """Return the command; ``operator`` empty means the login name.

    SettingsError when the reason says nothing or too much.
    """
    clock = SystemClock()
    return RolloutCommand(
        id=uuid7_ids(clock)(),
        time=clock.now(),
        policy=policy,
        action=action,
        version=version,
        reason=checked_reason(reason, "--reason"),
        operator=operator_name(operator),
    )


def ask(kafka: Kafka, command: RolloutCommand, seconds: float) -> Answer:
    """Send a command and wait at most ``seconds`` for its effect.

    KafkaError when the broker does not take it. The effect is there when the controller audited the
    command and then wrote a state that has read past it.
    """
    began = time.monotonic()
    reader = Reader(kafka, (AUDIT, ROLLOUTS), CLIENT_ID, from_end=True)
    try:
        seen = _Seen(command, _send(kafka, command))
        while seen.outcome() == "no answer" and time.monotonic() - began < seconds:
            for record in reader.poll(POLL_SECONDS):
                if (event := _event(record)) is not None:
                    seen.take(event)
    finally:
        reader.close()
    audited, state = seen.audited, seen.state
    return Answer(
        command=command,
        outcome=seen.outcome(),
        action=audited.action if audited else "",
        reason=audited.reason if audited else "",
        stable=state.stable.version if state else "",
        seconds=time.monotonic() - began,
    )


def _send(kafka: Kafka, command: RolloutCommand) -> int:
    """Send the command and return its offset; KafkaError when it is not acknowledged."""
    producer: Any = make_producer(kafka, CLIENT_ID)
    try:
        record = encode(ROLLOUT_COMMANDS, command, source=SOURCE)
        return int(send(producer, kafka, record).get(timeout=SEND_SECONDS).offset)
    finally:
        producer.close(timeout=1.0)


def _event(record: Received) -> Event | None:
    """Decode what can concern us; other processes' audit records are passed over."""
    if record.topic is AUDIT and b'"rollout.' not in (record.value or b""):
        return None
    try:
        return record.event()
    except CodecError:
        return None


def answer_text(answer: Answer) -> str:
    """Return the answer for people."""
    command = answer.command
    asked = f"{command.action} {command.version[:12]}".strip()
    if answer.outcome == "no answer":
        return (
            f"{asked}: no answer from the rollout controller of policy {command.policy!r} within "
            f"{answer.seconds:.0f} s; the command {command.id} stays on topic "
            f"{ROLLOUT_COMMANDS.name} and is done when a controller runs; see 'headrace status'"
        )
    if answer.outcome == "refused":
        return f"{asked}: refused: {answer.reason}"
    return (
        f"{asked}: done ({answer.action}) after {answer.seconds:.1f} s; "
        f"{command.policy} is served by {answer.stable[:12]}"
    )
