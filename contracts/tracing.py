"""OpenTelemetry spans: one trace from request to training sample, carried by hand through Kafka.

Spans go to an OTLP endpoint when one is set, else to a local JSON-lines file. They are telemetry:
sampled, droppable, late. What must not be lost is in the audit topic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

import msgspec
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

SCHEMA = "https://github.com/open-telemetry/semantic-conventions-genai@002c8a6"
"""Commit of the GenAI conventions whose attribute names we use (status: Development)."""

MAX_LINKS = 128
"""Links of one span, OpenTelemetry's own default limit; more are left out."""

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
            for span in spans:
                self._file.write(span_json(span) + b"\n")
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
        "resource": {
            "attributes": dict(span.resource.attributes),
            "schema_url": span.resource.schema_url,
        },
    }
    return msgspec.json.encode(found)


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
    provider = TracerProvider(
        # Not by the parent: a client that does not sample its own trace must not hide our work.
        sampler=ALWAYS_ON,
        resource=Resource.create({"service.name": f"headrace-{process}"}),
    )
    exporter: SpanExporter
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces")
    else:
        exporter = FileSpanExporter(span_file)
    provider.add_span_processor(BatchSpanProcessor(exporter))
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
    parent_context: Context | None = extract(dict(parent)) if parent else None
    linked = [
        Link(ctx)
        for headers in links[:MAX_LINKS]
        if (ctx := trace.get_current_span(extract(dict(headers))).get_span_context()).is_valid
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


def current_trace_headers() -> dict[str, str]:
    """Return the W3C trace headers of the current span, to send along with a record."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return {}
    # As the SDK's propagator writes it, which first asks for the span and its baggage three times.
    headers = {
        "traceparent": (
            f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"
        )
    }
    if current.trace_state:
        headers["tracestate"] = current.trace_state.to_header()
    return headers


def current_ids() -> tuple[str | None, str | None]:
    """Return (trace id, span id) of the current span in hex, (None, None) outside of one."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return None, None
    return f"{current.trace_id:032x}", f"{current.span_id:016x}"
