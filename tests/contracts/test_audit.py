"""The audit chain of one producer shows every flip, drop and reorder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.audit import AuditChain, broken_links, record_hash
from contracts.clock import ManualClock
from contracts.codec import decode, encode
from contracts.events import AuditRecord
from contracts.ids import NewId
from contracts.topics import AUDIT

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text("aé\n", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def records(clock: ManualClock, new_id: NewId) -> list[AuditRecord]:
    chain = AuditChain("learner", clock, new_id)
    return [chain.record("publish", f"v{number}", detail={"n": number}) for number in range(6)]


def as_read(record: AuditRecord) -> AuditRecord:
    written = encode(AUDIT, record, source="tests")
    read = decode(AUDIT, written.value, written.headers)
    assert isinstance(read, AuditRecord)
    return read


def test_sound_chain_has_no_broken_links(records: list[AuditRecord]) -> None:
    assert broken_links(records) == []
    assert [record.sequence for record in records] == list(range(6))
    assert records[0].previous == ""


@given(st.dictionaries(st.text("abc"), values, max_size=4))
def test_chain_is_sound_after_a_trip_through_kafka(detail: dict[str, object]) -> None:
    chain = AuditChain("learner", ManualClock(), lambda: "id")
    made = [chain.record("publish", "v", detail=detail), chain.record("publish", "w")]
    read = [as_read(record) for record in made]
    assert broken_links(read) == []
    assert [record_hash(record) for record in read] == [record_hash(record) for record in made]


@pytest.mark.parametrize(
    "change",
    [{"reason": "another"}, {"detail": {"n": 99}}, {"subject": "v9"}, {"previous": "f" * 64}],
)
def test_flip_inside_the_chain_is_detected(
    records: list[AuditRecord], change: dict[str, object]
) -> None:
    records[2] = msgspec.structs.replace(records[2], **change)
    assert broken_links(records)


def test_drop_is_detected(records: list[AuditRecord]) -> None:
    for number in range(5):  # the last one has no successor that would miss it
        assert broken_links(records[:number] + records[number + 1 :])


def test_reorder_is_detected(records: list[AuditRecord]) -> None:
    records[1], records[2] = records[2], records[1]
    assert broken_links(records)


def test_insertion_is_detected(records: list[AuditRecord]) -> None:
    assert broken_links([*records[:3], records[2], *records[3:]])


def test_restart_begins_a_new_chain(clock: ManualClock, new_id: NewId) -> None:
    first, second = (AuditChain("learner", clock, new_id) for _ in range(2))
    assert first.producer != second.producer
    assert second.record("start", "x").sequence == 0


def test_threads_and_records_that_are_not_kept_leave_no_gap(
    clock: ManualClock, new_id: NewId
) -> None:
    chain = AuditChain("gateway", clock, new_id)
    made: list[AuditRecord] = []

    def keep(number: int) -> None:
        with suppress(OSError), chain.kept("x", str(number)) as record:
            if number % 3 == 0:
                raise OSError("disk full")
            made.append(record)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(keep, range(600)))
    assert len(made) == 400
    assert broken_links([*made, chain.record("x", "last")]) == []
