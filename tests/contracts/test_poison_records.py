"""Whatever a record holds, it is an event of its topic or has a dead letter that fits."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from contracts.broker import Received
from contracts.codec import MAX_VALUE_BYTES, ce_type, decode, encode
from contracts.dead_letters import dead_letter
from contracts.errors import CodecError
from contracts.events import EVENTS, DeadLetter
from contracts.topics import DEAD_LETTERS, TOPICS
from tests.poison import Poisoner, golden_messages, poison_seed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MUTATED, DRAWN = 7_000, 3_000

types = st.sampled_from([ce_type(kind).encode() for kind in EVENTS]) | st.binary(max_size=12)
headers = st.lists(
    st.tuples(st.sampled_from(["ce_type", "traceparent"]) | st.text(max_size=5), st.none() | types),
    max_size=4,
)
names = st.sampled_from(sorted({key for _, event in golden_messages().values() for key in event}))
trees = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=4), inner),
    max_leaves=12,
)
values = st.none() | st.binary(max_size=200) | trees.map(msgspec.json.encode)


def outcome(record: Received) -> str:
    """Return "event", or the reason of the record's dead letter; anything else fails the test."""
    try:
        event = record.event()
    except CodecError as error:
        letter = dead_letter(record, f"p-{record.topic.name}", error.reason, error.detail, NOW)
        sent = encode(DEAD_LETTERS, letter, source="test")
        assert len(sent.value) <= MAX_VALUE_BYTES
        assert sent.key.decode() == f"p-{record.topic.name}/{record.partition}/{record.offset}"
        assert decode(DEAD_LETTERS, sent.value, sent.headers) == letter
        assert isinstance(letter, DeadLetter)
        return error.reason
    assert isinstance(event, record.topic.events)
    record.topic.key(event).encode()
    event.time.astimezone(UTC)
    return "event"


def test_ten_thousand_poison_records_are_each_an_event_or_a_dead_letter() -> None:
    number = poison_seed()
    found: Counter[str] = Counter()
    for record in Poisoner(number).records(TOPICS, MUTATED):
        found[outcome(record)] += 1

    @seed(number)
    @settings(max_examples=DRAWN, database=None)
    @given(st.sampled_from(TOPICS), st.none() | st.binary(max_size=9), values, headers)
    def drawn(topic: Any, key: bytes | None, value: bytes | None, given_headers: Any) -> None:
        found[outcome(Received(topic, 0, 1, key, value, given_headers))] += 1

    drawn()
    print(dict(found))
    assert found.total() >= MUTATED + DRAWN
    reasons = {"malformed", "oversized", "unknown-type", "unknown-version", "invalid"}
    assert set(found) == {"event", *reasons}
    assert min(found.values()) >= 20
