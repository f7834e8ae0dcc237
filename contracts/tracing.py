"""OpenTelemetry spans: one trace from request to training sample, carried by hand through Kafka.

Spans go to an OTLP endpoint when one is set, else to a local JSON-lines file. They are telemetry:
sampled, droppable, late. What must not be lost is in the audit topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from threading import Lock

import msgspec
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
)
from opentelemetry.util.types import AttributeValue

from contracts.lean_spans import LeanSpan, LeanTracerProvider, trace_headers

SCHEMA = "https://github.com/open-telemetry/semantic-conventions-genai@002c8a6"
"""Commit of the GenAI conventions whose attribute names we use (status: Development)."""

MAX_LINKS = 128
"""Links of one span, OpenTelemetry's own default limit; more are left out."""

MAX_WAITING = 16_384
"""Spans that wait to be exported; a stream worker ends some thousands at once. More are dropped."""

MAX_REMEMBERED = 600
"""Characters of trace headers whose context is remembered: whoever writes a record chooses them."""

_USUAL_PARENT = re.compile(
    "00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})",
)
"""A `traceparent` of version 00 with ids that are not all zero."""

_tracer = trace.get_tracer("headrace", schema_url=SCHEMA)


class FileSpanExporter(SpanExporter):
    """Appends each span as one JSON line, in the form of the SDK's own `ReadableSpan.to_json`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._lock = Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write and flush the spans."""
        with self._lock:
            self._file.write(b"".join(span_json(span) + b"\n" for span in spans))
            self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def span_json(span: ReadableSpan) -> bytes:
    """Return what the SDK's `ReadableSpan.to_json` gives, for a fraction of its price."""
    context, parent, status = span.get_span_context(), span.parent, span.status
    described = {"description": status.description} if status.description else {}
    found: dict[str, object] = {
        "name": span.name,
        "context": _context(context) if context else None,
        "kind": str(span.kind),
        "parent_id": f"0x{parent.span_id:016x}" if parent else None,
        "start_time": _moment(span.start_time),
        "end_time": _moment(span.end_time),
        "status": {"status_code": status.status_code.name, **described},
        "attributes": dict(span.attributes or {}),
        "events": [
            {
                "name": event.name,
                "timestamp": _moment(event.timestamp),
                "attributes": dict(event.attributes or {}),
            }
            for event in span.events
        ],
        "links": [
            {"context": _context(link.context), "attributes": dict(link.attributes or {})}
            for link in span.links
        ],
        "resource": _resource_json(span.resource),
    }
    return msgspec.json.encode(found)


_resources: dict[int, tuple[Resource, msgspec.Raw]] = {}
"""Their JSON, by identity: a process has one, and the SDK's hash of it costs more than to write."""


def _resource_json(resource: Resource) -> msgspec.Raw:
    known = _resources.get(id(resource))
    if known is None:
        found = {"attributes": dict(resource.attributes), "schema_url": resource.schema_url}
        known = _resources[id(resource)] = resource, msgspec.Raw(msgspec.json.encode(found))
    return known[1]


def _context(context: SpanContext) -> dict[str, str]:
    return {
        "trace_id": f"0x{context.trace_id:032x}",
        "span_id": f"0x{context.span_id:016x}",
        "trace_state": repr(context.trace_state),
    }


def _moment(nanoseconds: int | None) -> str | None:
    if not nanoseconds:
        return None
    moment = datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC)
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def start_tracing(process: str, *, otlp_endpoint: str | None, span_file: Path) -> TracerProvider:
    """Install the tracer provider of this process; call `TracerProvider.shutdown` at its end.

    ``otlp_endpoint`` is the base URL of an OTLP/HTTP collector, e.g. ``http://127.0.0.1:4318``.
    """
    provider = LeanTracerProvider(Resource.create({"service.name": f"headrace-{process}"}))
    exporter: SpanExporter
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces")
    else:
        exporter = FileSpanExporter(span_file)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_WAITING))
    trace.set_tracer_provider(provider)
    return provider


@contextmanager
def span(
    name: str,
    *,
    parent: Mapping[str, str] | None = None,
    links: Sequence[Mapping[str, str]] = (),
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """Run a block inside a span.

    ``parent`` and ``links`` are W3C trace headers as they came with a record. Work on one record
    takes it as parent; work on a batch starts its own trace and links to the records. An exception
    that leaves the block marks the span with its type alone: its message may quote a conversation.
    """
    parent_context = _remote_of(parent) if parent else None
    linked = [
        Link(ctx, {})
        for headers in links[:MAX_LINKS]
        if (ctx := trace.get_current_span(_remote_of(headers)).get_span_context()).is_valid
    ]
    current = _tracer.start_span(
        name,
        context=parent_context,
        kind=kind,
        links=linked,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    )
    token = context.attach(trace.set_span_in_context(current))
    try:
        yield current
    except Exception as error:
        current.set_status(StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        context.detach(token)
        current.end()


def _remote_of(headers: Mapping[str, str]) -> Context:
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if len(parent) + len(state) > MAX_REMEMBERED:
        return _remote.__wrapped__(parent, state)
    return _remote(parent, state)


@lru_cache(4096)
def _remote(traceparent: str, tracestate: str) -> Context:
    """Return the context of a record's headers; each step on it asks for the same again."""
    usual = None if tracestate else _USUAL_PARENT.fullmatch(traceparent)
    if usual is not None:  # what `extract` makes of it, for a third of the price
        trace_id, span_id, flags = usual.groups()
        parent = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
        return trace.set_span_in_context(NonRecordingSpan(parent), Context())
    found = {"traceparent": traceparent, "tracestate": tracestate}
    return extract({name: text for name, text in found.items() if text})


def current_trace_headers() -> dict[str, str]:
    """Return the W3C trace headers of the current span, to send along with a record."""
    current = trace.get_current_span()
    if isinstance(current, LeanSpan):
        return current.headers()
    context = current.get_span_context()
    return trace_headers(context) if context.is_valid else {}


def current_ids() -> tuple[str | None, str | None]:
    """Return (trace id, span id) of the current span in hex, (None, None) outside of one."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return None, None
    return f"{current.trace_id:032x}", f"{current.span_id:016x}"
