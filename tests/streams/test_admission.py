"""Admission gives the event, or a dead letter that fits into a record."""

from __future__ import annotations

from datetime import UTC, datetime

from contracts.broker import Received
from contracts.codec import encode, to_json
from contracts.events import DeadLetter
from contracts.topics import DEAD_LETTERS, FEEDBACK
from streams.admission import admit

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_refused_record_with_a_large_key_and_header_has_a_dead_letter_that_fits() -> None:
    headers = [("note", b"\x01" * 400_000)] * 40
    record = Received(FEEDBACK, 1, 2, b"k" * 700_000, b"{" + b" " * 900_000, headers)

    letter = admit(record, "p-feedback", NOW)

    assert isinstance(letter, DeadLetter)
    assert (letter.topic, letter.reason) == ("p-feedback", "oversized")
    encode(DEAD_LETTERS, letter, source="test")


def test_a_correction_that_would_teach_silence_is_refused_as_invalid() -> None:
    feedback = {
        **dict.fromkeys(["id", "decision_id", "session_id", "user_id"], "x"),
        "time": NOW,
        "kind": "correction",
        "correction": {"role": "assistant", "content": ""},
    }

    letter = admit(Received(FEEDBACK, 1, 2, b"x", to_json(feedback), []), "p-feedback", NOW)

    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.offset) == ("invalid", 2)
    assert "correction is empty" in letter.detail
