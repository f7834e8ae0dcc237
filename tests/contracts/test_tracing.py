"""One trace runs through Kafka headers; batches link to what they are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, get_current_span
from opentelemetry.util.types import AttributeValue

from contracts import tracing
from contracts.audit import AuditChain
from contracts.clock import ManualClock
from contracts.codec import encode, trace_headers
from contracts.events import AuditRecord
from contracts.ids import NewId
from contracts.topics import AUDIT
from contracts.tracing import (
    FileSpanExporter,
    current_ids,
    current_trace_headers,
    span,
    span_json,
    start_tracing,
)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """A provider of this test's own: the process-wide one can be set only once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests"))
    return exporter


def through_kafka(record: AuditRecord) -> dict[str, str]:
    """The trace headers as a reader of the record finds them."""
    written = encode(AUDIT, record, source="tests", trace=current_trace_headers())
    return trace_headers(written.headers)


@pytest.fixture
def record(clock: ManualClock, new_id: NewId) -> AuditRecord:
    return AuditChain("tests", clock, new_id).record("x", "y")


def test_work_on_a_record_continues_the_trace_of_its_writer(
    spans: InMemorySpanExporter, record: AuditRecord
) -> None:
    with span("request"):
        headers = through_kafka(record)
    with span("reward", parent=headers):
        pass
    request, reward = spans.get_finished_spans()
    assert reward.context.trace_id == request.context.trace_id
    assert reward.parent is not None
    assert reward.parent.span_id == request.context.span_id


def test_batch_starts_its_own_trace_and_links_to_its_records(
    spans: InMemorySpanExporter, record: AuditRecord
) -> None:
    headers = []
    for name in ("one", "two"):
        with span(name):
            headers.append(through_kafka(record))
    with span("update", links=[*headers, {}, {"traceparent": "not one"}]):
        pass
    one, two, update = spans.get_finished_spans()
    assert update.parent is None
    assert [link.context.span_id for link in update.links] == [
        one.context.span_id,
        two.context.span_id,
    ]
    assert len({one.context.trace_id, two.context.trace_id, update.context.trace_id}) == 3


@pytest.mark.parametrize("headers", [{}, {"traceparent": "garbage"}, {"traceparent": "00-0-0-00"}])
def test_record_without_a_usable_trace_starts_a_new_one(
    spans: InMemorySpanExporter, headers: dict[str, str]
) -> None:
    with span("reward", parent=headers):
        pass
    (reward,) = spans.get_finished_spans()
    assert reward.parent is None
    assert reward.context.is_valid


def test_audit_records_carry_the_ids_of_their_span(
    spans: InMemorySpanExporter, clock: ManualClock, new_id: NewId
) -> None:
    chain = AuditChain("tests", clock, new_id)
    assert current_ids() == (None, None)
    with span("promote"):
        inside = chain.record("promote", "v1")
    (promote,) = spans.get_finished_spans()
    assert inside.trace_id == f"{promote.context.trace_id:032x}"
    assert inside.span_id == f"{promote.context.span_id:016x}"
    assert chain.record("idle", "v1").trace_id is None


def test_an_exception_leaves_its_type_on_the_span_and_nothing_of_its_message(
    spans: InMemorySpanExporter,
) -> None:
    with pytest.raises(ValueError, match="4111"), span("outer"), span("inner"):
        raise ValueError("4111 1111 1111 1111")
    for failed in spans.get_finished_spans():
        assert (failed.status.status_code, failed.status.description) == (
            StatusCode.ERROR,
            "ValueError",
        )
        assert "4111" not in failed.to_json()


def test_outside_of_a_span_no_trace_is_sent_along() -> None:
    assert current_trace_headers() == {}


def test_span_file_holds_one_json_object_per_line(tmp_path: Path) -> None:
    path = tmp_path / "spans" / "learner.jsonl"
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(path)))
    tracer = provider.get_tracer("tests")
    with (
        tracer.start_as_current_span("update", attributes={"headrace.samples": 64}),
        tracer.start_as_current_span("forward"),
    ):
        pass
    provider.shutdown()
    forward, update = map(json.loads, path.read_text().splitlines())
    assert (forward["name"], update["name"]) == ("forward", "update")
    assert forward["parent_id"] == update["context"]["span_id"]
    assert update["attributes"] == {"headrace.samples": 64}


def test_a_span_reads_in_the_file_as_the_sdk_writes_it(spans: InMemorySpanExporter) -> None:
    state = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}
    attributes: dict[str, AttributeValue] = {
        "text": 'Grüße \n"',
        "numbers": [1, 2],
        "share": 0.1,
        "yes": True,
    }
    with (
        pytest.raises(ValueError, match="no"),
        span("outer", parent=state, links=[state], attributes=attributes) as outer,
        span("inner"),
    ):
        outer.add_event("seen", {"count": 1})
        raise ValueError("no")
    inner, outermost = spans.get_finished_spans()
    for one in (inner, outermost):
        assert json.loads(span_json(one)) == json.loads(one.to_json())


def test_the_headers_sent_along_are_those_of_the_propagator(spans: InMemorySpanExporter) -> None:
    state = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1,other=2"}
    with span("outer", parent=state):
        expected: dict[str, str] = {}
        inject(expected)
        assert current_trace_headers() == expected
        assert expected["tracestate"] == state["tracestate"]


def test_span_file_of_a_restarted_process_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "learner.jsonl"
    for name in ("first", "second"):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(path)))
        with provider.get_tracer("tests").start_as_current_span(name):
            pass
        provider.shutdown()
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == [
        "first",
        "second",
    ]


def test_a_client_that_does_not_sample_its_trace_does_not_hide_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda _: None)
    path = tmp_path / "gateway.jsonl"
    provider = start_tracing("gateway", otlp_endpoint=None, span_file=path)
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests"))
    with span("chat", parent={"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}):
        sent = current_trace_headers()
    provider.shutdown()
    (found,) = map(json.loads, path.read_text().splitlines())
    assert found["context"]["trace_id"] == f"0x{'a' * 32}"
    assert sent["traceparent"].endswith("-01")


IDS = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"


@pytest.mark.parametrize(
    "traceparent",
    [
        *(f"00-{IDS}-{flags}" for flags in ("00", "01", "03", "ff", "0A", "1")),
        f"00-{IDS.upper()}-01",
        *(f"{version}-{IDS}-01-more" for version in ("00", "01")),
        f"ff-{IDS}-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        f" 00-{IDS}-01\n",
        "",
    ],
)
@pytest.mark.parametrize("tracestate", ["", "vendor=value", "=", "a" * 600])
def test_trace_headers_are_read_as_the_sdks_propagator_reads_them(
    traceparent: str, tracestate: str
) -> None:
    given = {"traceparent": traceparent, "tracestate": tracestate}
    wanted = get_current_span(extract(given, Context())).get_span_context()
    found = get_current_span(tracing._remote(traceparent, tracestate)).get_span_context()
    assert found == wanted
    assert found.is_remote == wanted.is_remote


def test_trace_headers_without_measure_are_not_remembered() -> None:
    parent = f"00-{1:032x}-{1:016x}-01"
    for state in ("vendor=" + "x" * 600, ",".join(f"v{n}=x" for n in range(200))):
        before = tracing._remote.cache_info()
        with span("step", parent={"traceparent": parent, "tracestate": state}) as current:
            assert current.get_span_context().trace_id == 1
        assert tracing._remote.cache_info() == before
