"""A dead letter fits into a record, whatever the record it is about holds."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime

import pytest

from contracts.broker import Received
from contracts.codec import MAX_VALUE_BYTES, Headers, decode, encode
from contracts.dead_letters import dead_letter
from contracts.events import DeadLetter
from contracts.topics import DEAD_LETTERS, SAMPLES

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _written(key: bytes | None, value: bytes | None, headers: Headers, detail: str) -> DeadLetter:
    record = Received(SAMPLES, 0, 7, key, value, headers)
    letter = dead_letter(record, "p-samples", "failed", detail, NOW)
    sent = encode(DEAD_LETTERS, letter, source="test")
    assert len(sent.value) <= MAX_VALUE_BYTES
    found = decode(DEAD_LETTERS, sent.value, sent.headers)
    assert isinstance(found, DeadLetter)
    return found


@pytest.mark.parametrize("byte", [b"a", b"\x00", b"\xff", b'"'])
def test_a_record_of_any_size_and_bytes_has_a_dead_letter_that_fits(byte: bytes) -> None:
    headers = [(f"{n}" + "\x01" * 2000, byte * 400_000) for n in range(100)]

    letter = _written(byte * 700_000, byte * 1_000_000, headers, "\x00" * 5000)

    assert (letter.topic, letter.partition, letter.offset) == ("p-samples", 0, 7)
    assert letter.value_bytes == 1_000_000
    assert len(b64decode(letter.value_base64)) == 512 * 1024
    assert len(letter.headers) == 32


def test_a_small_record_is_kept_whole() -> None:
    headers = [("ce_type", b"x.v1"), ("odd", b"\xff")]

    letter = _written(b"key", b"value", headers, "why \ud800")

    assert b64decode(letter.key_base64 or "") == b"key"
    assert b64decode(letter.value_base64) == b"value"
    assert letter.headers == {"ce_type": "x.v1", "odd": "\ufffd"}
    assert letter.detail == "why ?"


def test_the_same_place_has_the_same_id_and_another_topic_another() -> None:
    record = Received(SAMPLES, 0, 7, None, None, [])
    ids = [dead_letter(record, name, "failed", "", NOW).id for name in ("a", "a", "b")]

    assert ids[0] == ids[1] != ids[2]
