"""A gateway that loses the parts around it one after the other, until it is alone with its engine.

No learner and no stream processor ever runs here: to a gateway these are dead from the start.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from console.local_broker import LocalBroker, free_port
from contracts import settings as s
from contracts.broker import create_topics, events_to_end
from contracts.heartbeat import read_heartbeat
from contracts.topics import DECISIONS, FEEDBACK
from feature_store.store import repository
from tests.serving.collector import Collector
from tests.serving.http_server import Server
from tests.until import until


class Served:
    """What a gateway acknowledged."""

    def __init__(self, gateway: Server) -> None:
        self.decisions: list[str] = []
        self.feedback: list[str] = []
        self._gateway = gateway

    def ask(self) -> None:
        """Ask a plain and a streamed question, and rate the plain answer."""
        body: dict[str, Any] = {
            "model": "assistant",
            "messages": [{"role": "user", "content": "hello"}],
        }
        for stream in (False, True):
            status, headers, content = self._post(
                "/v1/chat/completions", {**body, "stream": stream}
            )
            assert (status, headers["X-Headrace-Rung"]) == (200, "stable")
            self.decisions.append(headers["X-Headrace-Decision-Id"])
            if stream:
                assert content.endswith(b"data: [DONE]\n\n")
            else:
                self._rate(json.loads(content)["headrace"])

    def _rate(self, ours: dict[str, str]) -> None:
        names = ("decision_id", "session_id", "user_id")
        body: dict[str, Any] = {name: ours[name] for name in names}
        body |= {"token": ours["feedback_token"], "kind": "rating", "score": 1.0}
        status, _, content = self._post("/v1/feedback", body)
        assert status == 202
        self.feedback.append(json.loads(content)["event_id"])

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, Any, bytes]:
        response, content = self._gateway.request("POST", path, json.dumps(body).encode())
        return response.status, response.headers, content


def start_controller(kafka: s.Kafka, engine: Server, state_dir: Path) -> Server:
    """Start the rollout controller and wait until it serves."""
    settings = s.Settings(
        state_dir=state_dir, kafka=kafka, engine=s.Engine(kind="transformers", url=engine.url)
    )
    argv = [sys.executable, "-m", "serving", "rollout"]
    server = Server(argv, s.to_environment(settings), 0, state_dir / "rollout.log")
    until(
        "the controller",
        lambda: (beat := read_heartbeat(state_dir, "rollout")) is not None and beat.ready,
        120.0,
        state=server.log,
    )
    return server


def test_without_controller_store_collector_and_broker_requests_succeed_and_nothing_is_lost(
    tiny_engine: Server, start_gateway: Callable[..., Any], collector: Collector, tmp_path: Path
) -> None:
    broker, state_dir = LocalBroker(tmp_path / "broker", free_port()), tmp_path / "state"
    state_dir.mkdir()
    broker.start()
    try:
        create_topics(broker.kafka)
        controller = start_controller(broker.kafka, tiny_engine, state_dir)
        gateway = start_gateway(broker.kafka, tiny_engine.url, state_dir, collector.url)
        until("all parts", lambda: gateway.health()["status"] == "ok", 120.0, state=gateway.health)
        served = Served(gateway)
        served.ask()
        controller.kill()
        served.ask()
        store = repository(s.Settings(state_dir=state_dir)) / "online.db"
        store.write_bytes(b"no database at all" * 500)
        served.ask()
        assert "feature store" in " ".join(gateway.health()["notes"])
        collector.die()
        served.ask()
        until("delivery", lambda: gateway.health()["undelivered"] == 0)
        broker.stop()
        served.ask()  # alone with its engine
        assert gateway.health()["status"] == "degraded"
        broker.start()
        until("delivery on return", lambda: gateway.health()["undelivered"] == 0, 120.0)
        for topic, acknowledged in ((DECISIONS, served.decisions), (FEEDBACK, served.feedback)):
            events = events_to_end(broker.kafka, (topic,), "test")
            assert Counter(event.id for _, event in events) == Counter(acknowledged)
        assert gateway.stop() == 0
    finally:
        broker.stop()
