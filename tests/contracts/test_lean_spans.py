"""Lean spans say what the SDK's say, to every exporter."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import StatusCode

from contracts import tracing
from contracts.lean_spans import LeanTracerProvider
from contracts.tracing import current_trace_headers, span, span_json

PARENT = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-03", "tracestate": "vendor=1"}
IDS = ("span_id", "trace_id", "start_time", "end_time", "timestamp")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[ReadableSpan]]]:
    """Tell the same story to both providers."""
    found: dict[str, list[ReadableSpan]] = {}
    resource = Resource.create({"service.name": "headrace-test"})
    providers = {
        "lean": LeanTracerProvider(resource),
        "sdk": TracerProvider(resource=resource, id_generator=RandomIdGenerator()),
    }
    for name, provider in providers.items():
        exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests", schema_url="urn:x"))
        with pytest.raises(ValueError, match="no"), span("outer", parent=PARENT, links=[PARENT]):
            with span("inner", attributes={"text": "Grüße", "numbers": (1, 2)}) as inner:
                inner.set_attribute("more", 1.5)
                inner.add_event("seen", {"count": 1})
            inner.set_attribute("too late", 1)
            raise ValueError("no")
        with span("root"):
            pass
        found[name] = list(exporter.get_finished_spans())
        provider.shutdown()
    yield found


def test_a_lean_span_says_what_the_sdks_does(told: dict[str, list[ReadableSpan]]) -> None:
    lean, sdk = ([_said(json.loads(span_json(one))) for one in told[name]] for name in told)
    assert lean == sdk
    assert [json.loads(span_json(one)) for one in told["lean"]] == [
        json.loads(one.to_json()) for one in told["lean"]
    ]


def test_an_otlp_exporter_encodes_a_lean_span_as_the_sdks(
    told: dict[str, list[ReadableSpan]],
) -> None:
    encoded = []
    for spans in told.values():
        (resource,) = encode_spans(spans).resource_spans
        (scope,) = resource.scope_spans
        for one in scope.spans:
            for field in ("trace_id", "span_id", "parent_span_id"):
                setattr(one, field, b"")
            one.start_time_unix_nano = one.end_time_unix_nano = 0
            for event in one.events:
                event.time_unix_nano = 0
        encoded.append((resource.resource, scope.scope, scope.schema_url, list(scope.spans)))
    assert encoded[0] == encoded[1]


def test_lean_spans_of_one_trace_name_their_parents(told: dict[str, list[ReadableSpan]]) -> None:
    inner, outer, root = told["lean"]
    assert inner.parent == outer.get_span_context()
    assert outer.parent is not None
    assert f"{outer.parent.span_id:016x}" == "b" * 16
    assert root.parent is None
    assert outer.status.status_code is StatusCode.ERROR
    assert inner.end_time is not None
    assert outer.start_time is not None
    assert outer.start_time <= inner.end_time


def test_headers_of_a_lean_span_are_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = LeanTracerProvider(Resource.create({}))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests"))
    with span("outer"):
        current_trace_headers().clear()
        assert list(current_trace_headers()) == ["traceparent"]
    provider.shutdown()


def _said(found: object) -> object:
    """Leave out what differs between two runs."""
    if isinstance(found, dict):
        return {
            key: _said(value)
            for key, value in found.items()
            if key not in IDS and not (key == "parent_id" and value is not None)
        }
    return [_said(one) for one in found] if isinstance(found, list) else found
