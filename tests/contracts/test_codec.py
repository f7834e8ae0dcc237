"""Bytes to events and back, and every reason for a dead letter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import codec
from contracts.codec import (
    MAX_VALUE_BYTES,
    ce_type,
    decode,
    encode,
    header,
    to_json,
    trace_headers,
)
from contracts.errors import CodecError
from contracts.events import (
    EVENTS,
    Assignment,
    AuditRecord,
    Feedback,
    FunctionCall,
    Message,
    Sample,
    ToolCall,
    text_of,
)
from contracts.topics import AUDIT, FEEDBACK, REWARDS, SAMPLES, TOPICS, Topic
from tests.stream_events import NOON, reward, safety

RATING = Feedback(
    id="f1", time=NOON, decision_id="d1", session_id="s1", user_id="u1", kind="rating", score=1.0
)
DEEP = b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
moments = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC))
scores = st.floats(-1, 1)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool", "developer"]),
    content=st.none() | names,
    tool_calls=st.lists(
        st.builds(ToolCall, id=names, function=st.builds(FunctionCall, name=names, arguments=names))
    ).map(tuple),
)
samples = st.builds(
    Sample,
    **dict.fromkeys(["id", "decision_id", "reward_id", "session_id", "user_id", "action"], names),
    **dict.fromkeys(["time", "decided_at", "feedback_time"], moments),
    assignment=st.builds(
        Assignment, policy=names, policy_version=names, probability=st.floats(0, 1)
    ),
    messages=st.lists(messages, max_size=3).map(tuple),
    prompt_token_ids=st.lists(st.integers(0, 200_000)).map(tuple),
    token_ids=st.lists(st.integers(0, 200_000)).map(tuple),
    logprobs=st.lists(st.floats(max_value=0, allow_infinity=False, allow_nan=False)).map(tuple),
    temperature=st.floats(0, 2),
    reward=scores,
    violation=st.booleans(),
    correction=st.none() | messages,
)


def reason_of(topic: Topic, value: bytes | None, declared: str | None = None) -> str:
    headers = [] if declared is None else [("ce_type", declared.encode())]
    with pytest.raises(CodecError) as caught:
        decode(topic, value, headers)
    assert caught.value.detail
    return caught.value.reason


@given(samples)
def test_any_sample_reads_back_as_it_was_written(sample: Sample) -> None:
    record = encode(SAMPLES, sample, source="tests")
    assert decode(SAMPLES, record.value, record.headers) == sample


@given(st.binary(max_size=300))
def test_arbitrary_bytes_become_an_event_or_a_codec_error(raw: bytes) -> None:
    for topic in TOPICS:
        with pytest.raises(CodecError):
            decode(topic, raw, None)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["id", "time", "kind", "score", "x"]), inner)
        ),
        max_leaves=8,
    )
)
def test_arbitrary_json_in_place_of_fields_is_a_codec_error(tree: object) -> None:
    for field in ("id", "time", "kind", "score", "correction"):
        raw = {**msgspec.to_builtins(RATING), field: tree}
        try:
            decode(FEEDBACK, to_json(raw), None)
        except CodecError as error:
            assert error.reason in ("invalid", "malformed")


def test_record_carries_cloudevents_headers_and_the_topics_key() -> None:
    record = encode(FEEDBACK, RATING, source="tests", trace={"traceparent": "00-aa-bb-01"})
    assert record.key == b"s1"
    assert record.headers == [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"f1"),
        ("ce_type", b"headrace.feedback.v1"),
        ("ce_source", b"tests"),
        ("ce_time", b"2026-11-22T12:00:00+00:00"),
        ("content-type", b"application/json"),
        ("traceparent", b"00-aa-bb-01"),
    ]


def test_value_reads_the_same_with_and_without_tracing() -> None:
    traced = encode(FEEDBACK, RATING, source="tests", trace={"traceparent": "00-aa-bb-01"})
    assert traced.value == encode(FEEDBACK, RATING, source="tests").value


def test_record_without_ce_type_is_the_topics_first_event() -> None:
    assert decode(FEEDBACK, to_json(RATING), None) == RATING
    assert decode(FEEDBACK, to_json(RATING), [("other", b"x")]) == RATING


def test_second_event_of_a_topic_is_found_by_its_ce_type() -> None:
    record = encode(REWARDS, safety(), source="tests")
    assert decode(REWARDS, record.value, record.headers) == safety()


@pytest.mark.parametrize(
    "value",
    [None, b"", b"not json", b'{"id": "f1"', b"\xff\xfe", b'{"id": "\\ud800"}', DEEP],
    ids=["none", "empty", "text", "cut", "not utf-8", "lone surrogate", "deep"],
)
def test_what_is_not_json_is_malformed(value: bytes | None) -> None:
    assert reason_of(FEEDBACK, value) == "malformed"


def test_no_value_is_malformed_with_the_cure() -> None:
    with pytest.raises(CodecError, match="send one JSON event"):
        decode(FEEDBACK, None, None)


def test_value_above_the_limit_is_oversized() -> None:
    assert reason_of(FEEDBACK, b" " * (MAX_VALUE_BYTES + 1)) == "oversized"


def test_event_above_the_limit_is_not_written() -> None:
    audit = AuditRecord(
        id="a",
        time=NOON,
        producer="p",
        sequence=0,
        previous="",
        action="x",
        subject="y",
        detail={"text": "x" * MAX_VALUE_BYTES},
    )
    with pytest.raises(CodecError, match="oversized"):
        encode(AUDIT, audit, source="tests")


def test_event_nested_too_deeply_is_not_written() -> None:
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    audit = AuditRecord(
        id="a",
        time=NOON,
        producer="p",
        sequence=0,
        previous="",
        action="x",
        subject="y",
        detail={"deep": deep},
    )
    with pytest.raises(CodecError, match="less deeply"):
        encode(AUDIT, audit, source="tests")


@pytest.mark.parametrize(
    "declared",
    ["headrace.decision.v1", "com.example.click", "headrace.feedback", "", "HEADRACE.FEEDBACK.v1"],
)
def test_type_that_does_not_belong_in_the_topic_is_unknown(declared: str) -> None:
    assert reason_of(FEEDBACK, to_json(RATING), declared) == "unknown-type"


@pytest.mark.parametrize("version", ["0", "2", "9999"])
def test_version_this_reader_does_not_know_is_refused(version: str) -> None:
    assert (
        reason_of(FEEDBACK, to_json(RATING), f"headrace.feedback.v{version}") == "unknown-version"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"score": 1.5},
        {"score": None},
        {"kind": "applause"},
        {"kind": "report"},
        {"time": "2026-11-22T12:00:00"},
        {"time": "yesterday"},
        {"id": ""},
        {"id": "x" * 129},
        {"session_id": None},
        {"reason": "x" * 4001},
    ],
)
def test_value_outside_the_schema_is_invalid(change: dict[str, object]) -> None:
    raw = {**msgspec.to_builtins(RATING), **change}
    assert reason_of(FEEDBACK, to_json(raw)) == "invalid"


@pytest.mark.parametrize(
    "correction",
    [
        {"role": "system", "content": "Say nothing."},
        {"role": "user", "content": "Why?"},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
        {"role": "assistant"},
        {"role": "assistant", "content": " \n"},
        {"role": "assistant", "content": []},
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
    ],
)
def test_correction_that_is_no_answer_is_invalid(correction: dict[str, object]) -> None:
    raw = {**msgspec.to_builtins(RATING), "kind": "correction", "correction": correction}
    assert reason_of(FEEDBACK, to_json(raw)) == "invalid"


@pytest.mark.parametrize(
    "correction",
    [
        {"role": "assistant", "content": "Hold it."},
        {"role": "assistant", "content": [{"type": "text", "text": "Hold it."}]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "function": {"name": "search", "arguments": "{}"}}],
        },
    ],
)
def test_correction_that_says_or_calls_something_is_valid(correction: dict[str, object]) -> None:
    raw = {**msgspec.to_builtins(RATING), "kind": "correction", "correction": correction}
    assert isinstance(decode(FEEDBACK, to_json(raw), None), Feedback)


def test_nested_time_without_offset_is_invalid() -> None:
    raw = {**msgspec.to_builtins(reward("d1", None)), "decided_at": "2026-11-22T12:00:00"}
    assert reason_of(REWARDS, to_json(raw)) == "invalid"


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_moment_that_does_not_exist_in_utc_is_invalid(time: str) -> None:
    raw = {**msgspec.to_builtins(RATING), "time": time}
    assert reason_of(FEEDBACK, to_json(raw)) == "invalid"


def test_event_in_the_wrong_topic_is_not_written() -> None:
    with pytest.raises(CodecError, match=r"allowed: headrace\.reward, headrace\.safety"):
        encode(REWARDS, RATING, source="tests")


def test_time_in_another_offset_is_the_same_moment() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    event = decode(FEEDBACK, to_json(msgspec.structs.replace(RATING, time=elsewhere)), None)
    assert event.time == NOON


def test_last_of_repeated_headers_counts_and_bytes_that_are_no_text_are_absent() -> None:
    assert header([("a", b"1"), ("a", b"2")], "a") == "2"
    assert header([("a", b"\xff")], "a") is None
    assert header(None, "a") is None


def test_trace_headers_are_those_of_w3c_alone() -> None:
    record = encode(FEEDBACK, RATING, source="tests", trace={"traceparent": "tp", "tracestate": ""})
    assert trace_headers(record.headers) == {"traceparent": "tp"}


def test_event_names_are_unique_and_versioned() -> None:
    kinds = [kind for topic in TOPICS for kind in topic.events]
    assert len({ce_type(kind) for kind in kinds}) == len(kinds)


def test_text_of_joins_the_text_parts() -> None:
    parts = [
        {"type": "text", "text": "one"},
        {"type": "image_url"},
        {"type": "text", "text": "two"},
    ]
    assert text_of(Message(role="user", content=parts)) == "one\n\ntwo"
    assert text_of(Message(role="assistant")) == ""


def test_no_thread_makes_a_types_first_decoder() -> None:
    assert set(codec._decoders) == set(EVENTS)
