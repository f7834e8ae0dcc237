"""What an engine's error quotes of a conversation is kept only where `tracing.content` is on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from console.local_broker import free_port
from contracts import settings as s
from contracts import tracing
from contracts.codec import to_json
from contracts.errors import EngineError
from contracts.tracing import FileSpanExporter
from serving.engine import EngineAnswer, EngineChunk, EngineRequest
from serving.engine_failure import is_crash
from serving.engine_wire import refusal
from serving.gateway_process import Running, assemble, make_app
from serving.http_engine import HttpEngine
from tests.serving.rollout_states import canary_state, user_of

CARD = "4111 1111 1111 1111"


class QuotingEngine(HttpEngine):
    """Fails with an error that quotes the question; the base model answers when ``answers``."""

    status = 400
    answers = False
    breaks_off = False

    async def complete(self, request: EngineRequest) -> EngineAnswer:
        self._fail_unless_it_answers(request)
        return EngineAnswer("hello", (1,), (2,), (0.0,), "stop")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self._fail_unless_it_answers(request)
        yield EngineChunk("hel", (2,), (0.0,), None, (1,))
        if self.breaks_off:
            raise EngineError(f"engine: cannot go on with {CARD}", 500)
        yield EngineChunk("lo", (3,), (0.0,), "stop")

    def _fail_unless_it_answers(self, request: EngineRequest) -> None:
        if not (self.answers and request.model == "base"):
            raise EngineError(f"engine refused ({self.status}): cannot read {CARD}", self.status)


class Scene:
    """A gateway on a `QuotingEngine`, with all that it writes."""

    def __init__(self, folder: Path, *, content: bool) -> None:
        settings = s.Settings(
            state_dir=folder,
            kafka=s.Kafka(bootstrap=f"127.0.0.1:{free_port()}"),
            gateway=s.Gateway(feedback_secret="x" * 16, fallback_reply=""),
            tracing=s.Tracing(content=content),
        )
        running = assemble(settings)
        self.engine = QuotingEngine("http://127.0.0.1:1", 5.0)
        self.state = canary_state(0.5, stable="base", canary="next")
        gateway = msgspec.structs.replace(
            running.gateway, engine=self.engine, rollout=lambda _policy: self.state
        )
        self.running: Running = msgspec.structs.replace(running, gateway=gateway)
        self.spans = folder / "spans.jsonl"
        transport = httpx.ASGITransport(make_app(self.running), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def ask(self, *, stream: bool) -> httpx.Response:
        message = {"role": "user", "content": "hello"}
        user = user_of("canary", self.state)
        body = {"model": "assistant", "messages": [message], "user": user, "stream": stream}
        return await self.client.post("/v1/chat/completions", json=body)

    def written(self) -> dict[str, str]:
        """Return the text of the spans and of each topic."""
        found = {"spans": self.spans.read_text()}
        for entry in self.running.outbox.pending(100):
            assert entry.record is not None
            topic = entry.record.topic.name
            found[topic] = found.get(topic, "") + entry.record.value.decode()
        return found


@pytest.fixture
async def scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(*, content: bool = False) -> Scene:
        scene = Scene(tmp_path, content=content)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(scene.spans)))
        monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests"))
        made.append(scene)
        return scene

    yield make
    for scene in made:
        await scene.client.aclose()
        scene.running.outbox.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "answered"), [(400, 400), (500, 503)])
async def test_arefusal_leaves_nothing_of_the_conversation_on_its_span(
    scene: Callable[..., Scene], stream: bool, status: int, answered: int
) -> None:
    set_up = scene()
    set_up.engine.status = status
    assert (await set_up.ask(stream=stream)).status_code == answered
    spans = set_up.written()["spans"]
    assert '"Refusal"' in spans
    assert CARD not in spans


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize(("stream", "breaks_off"), [(False, False), (True, False), (True, True)])
async def test_a_decision_and_its_audit_record_quote_the_engine_only_with_content(
    scene: Callable[..., Scene], content: bool, stream: bool, breaks_off: bool
) -> None:
    set_up = scene(content=content)
    set_up.engine.status, set_up.engine.answers = 500, True
    set_up.engine.breaks_off = breaks_off
    assert (await set_up.ask(stream=stream)).status_code == 200
    written = set_up.written()
    assert CARD not in written["spans"]
    for topic in ("decisions", "audit"):
        assert (CARD in written[topic]) == content
        assert "canary: next: " in written[topic]
    decision = msgspec.json.decode(written["decisions"])
    assert is_crash(decision["error"])


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_engine_error_of_any_length_is_cut(form: str) -> None:
    long: Any = "x" * 2_000_000
    body = to_json({"error": {"message": long}}) if form == "json" else long.encode()
    error = refusal(500, body)
    assert 500 <= len(str(error)) < 600
