"""What happened to one policy's rollouts: what people asked for and what the controller did."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from msgspec import Struct

from console.table import table
from contracts.broker import read_to_end
from contracts.errors import CodecError
from contracts.events import AuditRecord, Event, RolloutCommand
from contracts.settings import Kafka
from contracts.topics import AUDIT, ROLLOUT_COMMANDS

CLIENT_ID = "headrace-rollout-history"
AUDITED = "rollout."
SHOWN_REASON = 100


class Happening(Struct, frozen=True, kw_only=True):
    """One line: a command that was asked for, or a step that the controller audited.

    ``command_id`` ties a step to the command it answers; ``operator`` is empty where the controller
    acted by itself.
    """

    time: datetime
    action: str
    version: str
    reason: str
    operator: str = ""
    command_id: str = ""
    rollout_id: str = ""


def read_history(kafka: Kafka, policy: str) -> list[Happening]:
    """Return what happened to a policy, newest last.

    Of the audit only records that name a rollout are decoded: all processes write into it.
    """
    return history_of(_events(kafka), policy)


def _events(kafka: Kafka) -> Iterable[Event]:
    mark = f'"{AUDITED}'.encode()
    for record in read_to_end(kafka, (ROLLOUT_COMMANDS, AUDIT), CLIENT_ID):
        if record.value is None or (record.topic is AUDIT and mark not in record.value):
            continue
        try:
            yield record.event()
        except CodecError:
            continue


def history_of(events: Iterable[Event], policy: str) -> list[Happening]:
    """Return the lines of one policy's commands and audit records, by time."""
    events = list(events)
    asked = {e.id: e for e in events if isinstance(e, RolloutCommand) and e.policy == policy}
    found = {e.id: _asked(e) for e in asked.values()}
    for event in events:
        if isinstance(event, AuditRecord) and _is_about(event, policy):
            found[event.id] = _done(event, asked)
    return sorted(found.values(), key=lambda line: line.time)


def command_of(record: AuditRecord) -> str:
    """Return the id of the command that an audit record answers, "" when it answers none."""
    return str(record.detail.get("command_id") or "")


def _is_about(record: AuditRecord, policy: str) -> bool:
    return record.action.startswith(AUDITED) and record.detail.get("policy", policy) == policy


def _asked(command: RolloutCommand) -> Happening:
    return Happening(
        time=command.time,
        action=f"asked to {command.action}",
        version=command.version,
        reason=command.reason,
        operator=command.operator,
        command_id=command.id,
    )


def _done(record: AuditRecord, asked: dict[str, RolloutCommand]) -> Happening:
    detail: dict[str, Any] = record.detail
    command = asked.get(command_of(record))
    return Happening(
        time=record.time,
        action=record.action.removeprefix(AUDITED),
        version=record.subject,
        reason=record.reason,
        operator=command.operator if command else str(detail.get("operator") or ""),
        command_id=command_of(record),
        rollout_id=str(detail.get("rollout_id") or ""),
    )


def history_text(lines: list[Happening]) -> str:
    """Return the table for people; versions are cut to 12 characters, reasons to one line."""
    if not lines:
        return "nothing was rolled out yet"
    heads = ("time", "action", "version", "operator", "reason")
    rows = [
        (
            line.time.strftime("%Y-%m-%d %H:%M:%S"),
            line.action,
            line.version[:12],
            line.operator,
            _one_line(line.reason),
        )
        for line in lines
    ]
    return table(heads, rows)


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN_REASON else f"{words[: SHOWN_REASON - 1]}…"
