"""Broker down, gateway killed: what was answered is delivered, once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from console.local_broker import LocalBroker, free_port
from contracts.broker import create_topics, events_to_end
from contracts.clock import SystemClock
from contracts.codec import encode
from contracts.events import AuditRecord
from contracts.heartbeat import read_heartbeat
from contracts.ids import uuid7_ids
from contracts.settings import Kafka
from contracts.topics import AUDIT, DECISIONS, FEEDBACK
from serving.outbox import Outbox
from serving.outbox_delivery import Delivery
from tests.serving.http_server import Server
from tests.until import until


def ask(gateway: Server, stream: bool = False) -> str:
    """Return the decision id of one whole answer."""
    body = {
        "model": "assistant",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": stream,
    }
    response, text = gateway.request("POST", "/v1/chat/completions", json.dumps(body).encode())
    assert response.status == 200, text
    assert not stream or text.endswith(b"data: [DONE]\n\n")
    return str(response.headers["X-Headrace-Decision-Id"])


def ids_in(kafka: Kafka, *topics: Any) -> Counter[str]:
    return Counter(event.id for _, event in events_to_end(kafka, topics, "test"))


def test_requests_succeed_with_the_broker_down_and_each_decision_is_delivered_once(
    tiny_engine: Server, start_gateway: Callable[..., Any], tmp_path: Path
) -> None:
    broker = LocalBroker(tmp_path / "broker", free_port())
    state_dir = tmp_path / "state"
    gateway = start_gateway(broker.kafka, tiny_engine.url, state_dir=state_dir)
    served = [ask(gateway) for _ in range(5)]
    assert gateway.health()["status"] == "degraded"
    until(
        "a heartbeat with 5 decisions and 5 audit records undelivered",
        lambda: (beat := read_heartbeat(state_dir, "gateway")) and beat.lag == 10,
    )
    broker.start()
    create_topics(broker.kafka)
    try:
        until("delivery after the broker's start", lambda: gateway.health()["undelivered"] == 0)
        served += [ask(gateway) for _ in range(5)]
        broker.stop()
        served += [ask(gateway, stream=number % 2 == 0) for number in range(10)]
        broker.start()
        served += [ask(gateway) for _ in range(5)]
        until("delivery after the broker's return", lambda: gateway.health()["undelivered"] == 0)
        assert ids_in(broker.kafka, DECISIONS) == Counter(served)
        assert set(ids_in(broker.kafka, AUDIT).values()) == {1}
        assert gateway.stop() == 0
        assert not list((state_dir / "outbox").glob("*.jsonl"))
    finally:
        broker.stop()


def test_a_killed_gateway_loses_no_answered_decision_and_repeats_none(
    kafka: Kafka,
    tiny_engine: Server,
    start_gateway: Callable[..., Any],
    tmp_path: Path,
) -> None:
    state_dir = tmp_path / "state"
    gateway = start_gateway(kafka, tiny_engine.url, state_dir=state_dir)
    answered: list[str] = []

    def keep_asking(stream: bool) -> None:
        while True:
            try:
                answered.append(ask(gateway, stream))
            except (HTTPException, OSError, AssertionError):
                return

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(keep_asking, number % 2 == 0)
        until("20 answers", lambda: len(answered) >= 20)
        gateway.kill()
    again = start_gateway(kafka, tiny_engine.url, state_dir=state_dir)
    until("delivery of what was left", lambda: again.health()["undelivered"] == 0)
    delivered = ids_in(kafka, DECISIONS)
    assert set(answered) <= set(delivered)
    assert set(delivered.values()) == {1}
    assert again.stop() == 0


@pytest.fixture
def outbox_at(tmp_path: Path) -> Callable[[], Outbox]:
    return lambda: Outbox(tmp_path / "outbox", 1 << 20)


def put(outbox: Outbox, name: str) -> None:
    event = AuditRecord(
        id=name,
        time=SystemClock().now(),
        producer="p",
        sequence=0,
        previous="",
        action="a",
        subject="s",
    )
    outbox.append([encode(AUDIT, event, source="test")])


def deliver(outbox: Outbox, kafka: Kafka) -> None:
    delivery = Delivery(outbox, kafka, "test")
    delivery.start()
    until("delivery", lambda: outbox.undelivered == 0)
    delivery.stop(1.0)
    outbox.close()


def test_what_was_delivered_but_not_noted_is_recognised_on_the_broker(
    kafka: Kafka, outbox_at: Callable[[], Outbox], tmp_path: Path
) -> None:
    """The position is put back to before the delivery, as a crash in between leaves it."""
    outbox = outbox_at()
    put(outbox, "first")
    deliver(outbox, kafka)
    position = tmp_path / "outbox" / "position.json"
    before = position.read_bytes()
    outbox = outbox_at()
    segments = tmp_path / "outbox"
    for name in ("a", "b", "c"):
        put(outbox, name)
    written = {path: path.read_bytes() for path in segments.glob("*.jsonl")}
    deliver(outbox, kafka)
    position.write_bytes(before)
    for path, content in written.items():
        path.write_bytes(content)
    outbox = outbox_at()
    put(outbox, "d")
    assert outbox.undelivered == 4
    deliver(outbox, kafka)
    assert ids_in(kafka, AUDIT) == Counter(["first", "a", "b", "c", "d"])


def test_order_is_kept_in_a_partition(kafka: Kafka, outbox_at: Callable[[], Outbox]) -> None:
    outbox = outbox_at()
    names = [uuid7_ids(SystemClock())() for _ in range(1200)]
    for name in names:
        put(outbox, name)
    deliver(outbox, kafka)
    assert [event.id for _, event in events_to_end(kafka, (AUDIT,), "test")] == names
    assert not ids_in(kafka, FEEDBACK)
