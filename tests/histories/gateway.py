"""The gateway's outbox in a process of its own: takes events on stdin, says which it acknowledged.

It has what the gateway has between an answer and Kafka: decision log, outbox, delivery. One line in
is one request, one line out its answer.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import msgspec
from msgspec import Struct

from contracts.audit import AuditChain
from contracts.clock import SystemClock
from contracts.events import Decision, Feedback
from contracts.ids import uuid7_ids
from contracts.settings import load_settings
from serving.decision_log import DecisionLog
from serving.metrics import Metrics
from serving.outbox import Outbox, OutboxFullError
from serving.outbox_delivery import Delivery

DELIVER_SECONDS = 5.0


class Asked(Struct):
    """A request: an event to keep, or, without one, how the outbox fares."""

    kind: Literal["decision", "feedback", "status"]
    event: msgspec.Raw = msgspec.Raw(b"null")


class Answered(Struct):
    """Whether the event is kept, what is still to be delivered, and what delivery waits for."""

    acknowledged: bool
    undelivered: int
    note: str


def main() -> None:
    """Serve until the end of stdin, then deliver what is left for a while."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.ERROR)
    settings, clock = load_settings(), SystemClock()
    outbox = Outbox(settings.state_dir / "outbox", settings.gateway.outbox_max_bytes)
    delivery = Delivery(outbox, settings.kafka, "headrace-gateway-outbox")
    delivery.start()
    log = DecisionLog(outbox, AuditChain("gateway", clock, uuid7_ids(clock)), Metrics())
    for line in sys.stdin.buffer:
        asked = msgspec.json.decode(line, type=Asked)
        kept = _keep(log, asked)
        answer = Answered(kept, outbox.undelivered, delivery.note)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
    delivery.stop(DELIVER_SECONDS)
    outbox.close()


def _keep(log: DecisionLog, asked: Asked) -> bool:
    if asked.kind == "status":
        return True
    if asked.kind == "decision":
        log.decision(msgspec.json.decode(asked.event, type=Decision))
        return not log.losing
    try:
        log.feedback(msgspec.json.decode(asked.event, type=Feedback))
    except OutboxFullError:
        return False
    return True


if __name__ == "__main__":
    main()
