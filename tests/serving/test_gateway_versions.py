"""Which version answers, with which features, and what happens when a part is missing.

The gateway's application runs here in the test's own loop; the engine is a real one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from console.local_broker import free_port
from contracts import settings as s
from contracts.errors import SettingsError
from contracts.events import BASE_VERSION, Decision, FeatureValue, Rollout
from serving.gateway_process import Running, assemble, check_secret, make_app
from serving.http_engine import HttpEngine
from tests.serving.http_server import ADMIN_KEY, Server
from tests.serving.rollout_states import canary_state, user_of
from tests.until import until


class FixedReader:
    """An online store with one feature; ``broken`` makes it fail."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def read(
        self, user_id: str, session_id: str, policy_version: str, now: datetime, topic: str = ""
    ) -> dict[str, FeatureValue]:
        if self.broken:
            raise OSError("the store is gone")
        return {"user.mood": FeatureValue(value=0.5, age_seconds=2.0)}


def settings_for(url: str, state_dir: Path, **gateway: Any) -> s.Settings:
    values = {"feedback_secret": "x" * 16, "temperature": 0.0, "max_tokens": 40, **gateway}
    return s.Settings(
        state_dir=state_dir,
        kafka=s.Kafka(bootstrap=f"127.0.0.1:{free_port()}"),
        engine=s.Engine(kind="transformers", url=url, timeout_seconds=20.0),
        gateway=msgspec.convert(values, s.Gateway),
    )


@pytest.fixture
def settings(tiny_engine: Server, state_dir: Path) -> s.Settings:
    return settings_for(tiny_engine.url, state_dir)


Serve = Callable[..., tuple[Running, httpx.AsyncClient]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    opened: list[tuple[Running, httpx.AsyncClient]] = []

    def make(
        settings: s.Settings, state: Rollout | None = None, reader: FixedReader | None = None
    ) -> tuple[Running, httpx.AsyncClient]:
        running = assemble(settings, lambda _: reader or FixedReader(broken=True))
        gateway = msgspec.structs.replace(running.gateway, rollout=lambda _policy: state)
        running = msgspec.structs.replace(running, gateway=gateway)
        gateway.features.start()
        transport = httpx.ASGITransport(make_app(running), raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=30)
        opened.append((running, client))
        return running, client

    yield make
    for running, client in opened:
        await client.aclose()
        await running.gateway.engine.close()
        running.gateway.features.stop()
        running.outbox.close()


async def ask(client: httpx.AsyncClient, user: str = "u", **more: Any) -> httpx.Response:
    message = {"role": "user", "content": "hello"}
    body = {"model": "assistant", "messages": [message], "user": user, **more}
    return await client.post("/v1/chat/completions", json=body)


def decisions(running: Running) -> list[Decision]:
    records = [entry.record for entry in running.outbox.pending(1000)]
    return [
        msgspec.json.decode(record.value, type=Decision)
        for record in records
        if record is not None and record.topic.name == "decisions"
    ]


async def test_users_are_served_by_the_version_they_are_assigned_to(
    settings: s.Settings, serve: Serve, tiny_engine: Server, tiny_adapters: tuple[Path, Path]
) -> None:
    engine = HttpEngine(tiny_engine.url, 30.0, admin_key=ADMIN_KEY)
    await engine.load_adapter("next", tiny_adapters[0])
    state = canary_state(0.25, stable=BASE_VERSION, canary="next")
    running, client = serve(settings, state, FixedReader())
    for arm, version, probability in (("stable", "base", 0.75), ("canary", "next", 0.25)):
        answer = await ask(client, user_of(arm, state))
        assert answer.json()["headrace"]["policy_version"] == version
        assignment = decisions(running)[-1].assignment
        assert (assignment.arm, assignment.policy_version) == (arm, version)
        assert (assignment.probability, assignment.canary_weight) == (probability, 0.25)
        assert assignment.rollout_id == "rollout-1"
    await engine.unload_adapter("next")
    await engine.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_canary_that_fails_is_answered_for_by_stable_and_the_decision_says_so(
    settings: s.Settings, serve: Serve, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    state = canary_state(0.25, stable=BASE_VERSION, canary="not-loaded")
    running, client = serve(settings, state, FixedReader())
    answer = await ask(client, user_of("canary", state), stream=stream)
    assert answer.status_code == 200
    [decision] = decisions(running)
    assert (decision.assignment.arm, decision.assignment.policy_version) == ("stable", "base")
    assert decision.assignment.probability == 0.75
    assert decision.error == "canary: not-loaded: the engine answered with status 404"
    assert decision.text == "Grüße from a small model."
    assert running.gateway.metrics.counts["fallbacks"] == 1
    assert "not-loaded gives no answer: the engine answered with status 404" in caplog.messages
    assert "hello" not in caplog.text


async def test_when_stable_fails_too_the_base_model_answers(
    settings: s.Settings, serve: Serve
) -> None:
    state = canary_state(0.5, stable="gone", canary="not-loaded")
    running, client = serve(settings, state, FixedReader())
    assert (await ask(client, user_of("canary", state))).status_code == 200
    [decision] = decisions(running)
    assert decision.assignment.policy_version == BASE_VERSION
    assert [note.split(":")[0] for note in (decision.error or "").split("; ")] == [
        "canary",
        "stable",
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_without_engine_and_fallback_reply_the_answer_is_a_503_to_be_retried(
    state_dir: Path, serve: Serve, stream: bool
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    settings = settings_for(url, state_dir, fallback_reply="")
    running, client = serve(settings, None, FixedReader())
    answer = await ask(client, stream=stream)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "engine_unavailable"
    assert decisions(running) == []
    assert running.gateway.metrics.counts["failed"] == 1


async def test_features_are_logged_with_their_ages(settings: s.Settings, serve: Serve) -> None:
    running, client = serve(settings, None, FixedReader())
    until("the store to open", lambda: not running.gateway.features.note)
    await ask(client)
    assert decisions(running)[0].features == {"user.mood": FeatureValue(value=0.5, age_seconds=2.0)}


async def test_a_store_that_fails_costs_no_request(settings: s.Settings, serve: Serve) -> None:
    running, client = serve(settings, None, FixedReader(broken=True))
    until("the store to open", lambda: not running.gateway.features.note)
    assert (await ask(client)).status_code == 200
    assert decisions(running)[0].features == {}
    assert running.gateway.metrics.counts["features_missing"] == 1
    assert "the store is gone" in (await client.get("/healthz")).json()["notes"][-1]


async def test_a_full_outbox_refuses_feedback_counts_lost_decisions_and_keeps_answering(
    tiny_engine: Server, state_dir: Path, serve: Serve
) -> None:
    settings = settings_for(tiny_engine.url, state_dir, outbox_max_bytes=4000)
    running, client = serve(settings, None, FixedReader())
    answers = [await ask(client) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    lost = running.gateway.metrics.counts["lost"]
    assert lost == 4 - len(decisions(running)) > 0
    ours = answers[0].json()["headrace"]
    feedback = {name: ours[name] for name in ("decision_id", "session_id", "user_id")}
    feedback |= {"token": ours["feedback_token"], "kind": "rating", "score": 1}
    posted = [await client.post("/v1/feedback", json=feedback) for _ in range(5)]
    refused = posted[-1]  # the first may still find room, being smaller than a decision
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
    health = (await client.get("/healthz")).json()
    assert health["status"] == "degraded"
    assert any("outbox full" in note for note in health["notes"])


@pytest.mark.parametrize("secret", ["", "short"])
def test_a_gateway_without_a_proper_secret_does_not_start(secret: str) -> None:
    settings = s.Settings(gateway=s.Gateway(feedback_secret=secret))
    with pytest.raises(SettingsError, match="HEADRACE_GATEWAY__FEEDBACK_SECRET"):
        check_secret(settings)
