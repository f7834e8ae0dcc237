"""Spans of the OpenTelemetry API for a fraction of the SDK's price; exporters see no difference.

The SDK's span costs some 30 us: locks, bounded containers and metrics per span. Ours are ended by
the thread that began them, have few attributes of plain types, and are all sampled.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from time import time_ns
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SAMPLED_AT_RANDOM = TraceFlags(TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID)
_UNSET = Status(StatusCode.UNSET)


class LeanSpan(Span, ReadableSpan):
    """A span that records in plain containers. Not for several threads at once."""

    _processor: SpanProcessor
    _headers: dict[str, str] | None = None

    def get_span_context(self) -> SpanContext:
        """Return the ids of the span."""
        assert self._context is not None
        return self._context

    def headers(self) -> dict[str, str]:
        """Return the W3C trace headers of what is sent within the span."""
        if self._headers is None:
            self._headers = trace_headers(self.get_span_context())
        return dict(self._headers)

    def end(self, end_time: int | None = None) -> None:
        """Note the end, in nanoseconds since the epoch, and hand the span on; once."""
        if self._end_time is None:
            self._end_time = time_ns() if end_time is None else end_time
            self._processor.on_end(self)

    def is_recording(self) -> bool:
        """Say whether the span has not ended."""
        return self._end_time is None

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes, unless the span has ended."""
        if self.is_recording():
            self._attributes = {**(self._attributes or {}), **attributes}

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Add one attribute, unless the span has ended."""
        self.set_attributes({key: value})

    def add_event(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue] | None = None,
        timestamp: int | None = None,
    ) -> None:
        """Add an event, unless the span has ended."""
        if self.is_recording():
            self._events = [*self._events, Event(name, attributes, timestamp)]

    def update_name(self, name: str) -> None:
        """Give the span another name, unless it has ended."""
        if self.is_recording():
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status, unless the span has ended."""
        if self.is_recording():
            self._status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, AttributeValue] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an event of the exception's type alone: its message may quote a conversation."""
        named = {"exception.type": type(exception).__name__, **(attributes or {})}
        self.add_event("exception", named, timestamp)


def trace_headers(context: SpanContext) -> dict[str, str]:
    """Return a context as the SDK's propagator writes it."""
    flags = f"{context.trace_flags:02x}"
    headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"}
    if context.trace_state:
        headers["tracestate"] = context.trace_state.to_header()
    return headers


class LeanTracer(trace.Tracer):
    """Begins lean spans and hands the ended ones to a processor."""

    def __init__(
        self, scope: InstrumentationScope, resource: Resource, processor: SpanProcessor
    ) -> None:
        self._scope, self._resource, self._processor = scope, resource, processor

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> LeanSpan:
        """Begin a span under the context's span, or a trace of its own."""
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is None or not parent.is_valid:
            parent, trace_id, flags, state = None, random.getrandbits(128), _SAMPLED_AT_RANDOM, None
        else:
            trace_id, state = parent.trace_id, parent.trace_state
            flags = _SAMPLED_AT_RANDOM if parent.trace_flags.random_trace_id else _SAMPLED
        own = SpanContext(trace_id, random.getrandbits(64) or 1, False, flags, state)
        span = LeanSpan(
            name=name,
            context=own,
            parent=parent,
            resource=self._resource,
            attributes=dict(attributes) if attributes else {},
            links=links or (),
            kind=kind,
            status=_UNSET,
            start_time=time_ns() if start_time is None else start_time,
            instrumentation_scope=self._scope,
        )
        span._processor = self._processor
        return span

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        """Refuse: `contracts.tracing.span` is how spans are begun here."""
        raise NotImplementedError("begin spans by contracts.tracing.span")


class LeanTracerProvider(TracerProvider):
    """The SDK's provider, with lean tracers; each span is sampled.

    Not by the parent: a client that does not sample its own trace must not hide our work.
    """

    def __init__(self, resource: Resource) -> None:
        super().__init__(sampler=ALWAYS_ON, resource=resource)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> LeanTracer:
        """Return a tracer for spans of this scope."""
        scope = InstrumentationScope(
            instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        )
        return LeanTracer(scope, self.resource, self._active_span_processor)
