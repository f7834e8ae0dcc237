"""The outbox on disk: order, torn lines, bounds, positions, one owner."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.clock import ManualClock
from contracts.codec import Record, encode
from contracts.errors import UnavailableError
from contracts.events import AuditRecord
from contracts.topics import AUDIT
from serving.outbox import Outbox, OutboxFullError

MANY = 1000


@pytest.fixture
def record(clock: ManualClock) -> Callable[[str], Record]:
    def make(name: str) -> Record:
        event = AuditRecord(
            id=name,
            time=clock.now(),
            producer="t",
            sequence=0,
            previous="",
            action="tést",
            subject=name,
        )
        return encode(AUDIT, event, source="test", trace={"traceparent": "00-x"})

    return make


def ids(outbox: Outbox, limit: int = MANY) -> list[str]:
    return [entry.event_id for entry in outbox.pending(limit) if entry.record]


def test_records_come_back_in_order_and_unchanged(
    tmp_path: Path, record: Callable[[str], Record]
) -> None:
    outbox = Outbox(tmp_path, 1 << 20)
    outbox.append([record("a"), record("b")])
    outbox.append([record("c")])
    assert ids(outbox) == ["a", "b", "c"]
    assert ids(outbox, 2) == ["a", "b"]
    back = outbox.pending(1)[0].record
    assert back is not None
    assert (back.key, back.value, back.headers) == (
        record("a").key,
        record("a").value,
        record("a").headers,
    )
    assert outbox.undelivered == 3


def test_what_was_not_delivered_is_there_after_a_restart(
    tmp_path: Path, record: Callable[[str], Record]
) -> None:
    first = Outbox(tmp_path, 1 << 20)
    first.append([record(name) for name in "abc"])
    first.advance(first.pending(1), {"audit/0": 7})
    first.close()
    second = Outbox(tmp_path, 1 << 20)
    second.append([record("d")])
    assert (ids(second), second.undelivered) == (["b", "c", "d"], 3)
    assert second.bookmarks == {"audit/0": 7}


def test_a_torn_last_line_is_passed_over(tmp_path: Path, record: Callable[[str], Record]) -> None:
    first = Outbox(tmp_path, 1 << 20)
    first.append([record("a"), record("b")])
    first.close()
    segment = next(tmp_path.glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes()[:-20])
    second = Outbox(tmp_path, 1 << 20)
    second.append([record("c")])
    assert (ids(second), second.undelivered) == (["a", "c"], 2)
    second.advance(second.pending(MANY), {})
    assert (ids(second), second.undelivered) == ([], 0)


def test_a_damaged_line_in_the_middle_costs_only_itself(
    tmp_path: Path, record: Callable[[str], Record]
) -> None:
    first = Outbox(tmp_path, 1 << 20)
    first.append([record("a"), record("b"), record("c")])
    first.close()
    segment = next(tmp_path.glob("*.jsonl"))
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(lines[0] + b"\0" * 50 + b"\n" + lines[2])
    second = Outbox(tmp_path, 1 << 20)
    assert (ids(second), second.undelivered) == (["a", "c"], 2)


def test_a_full_outbox_refuses_all_of_an_append_and_has_room_after_delivery(
    tmp_path: Path, record: Callable[[str], Record]
) -> None:
    outbox = Outbox(tmp_path, 4000)
    kept = 0
    with pytest.raises(OutboxFullError, match=r"allowed 4000.*raise gateway\.outbox_max_bytes"):
        for _ in range(100):
            outbox.append([record("x"), record("y")])
            kept += 2
    assert outbox.undelivered == len(ids(outbox)) == kept
    assert outbox.bytes_on_disk <= 4000
    outbox.advance(outbox.pending(MANY), {})
    outbox.append([record("z")])
    assert ids(outbox) == ["z"]


def test_segments_are_deleted_when_delivered(
    tmp_path: Path, record: Callable[[str], Record]
) -> None:
    outbox = Outbox(tmp_path, 8000)
    sent = []
    for number in range(200):
        outbox.append([record(str(number))])
        if number % 10 == 9:
            batch = outbox.pending(MANY)
            sent += [entry.event_id for entry in batch]
            outbox.advance(batch, {})
    assert sent == [str(number) for number in range(200)]
    assert len(list(tmp_path.glob("*.jsonl"))) <= 2
    outbox.close()
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_segment_that_cannot_be_begun_costs_its_append_alone(
    tmp_path: Path, record: Callable[[str], Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    outbox = Outbox(tmp_path, 4000)
    outbox.append([record("a"), record("b")])
    outbox.append([record("c"), record("d")])
    with monkeypatch.context() as disk:
        disk.setattr("serving.outbox.os.open", no_space)
        with pytest.raises(OutboxFullError, match="No space left"):
            outbox.append([record("e")])
    outbox.append([record("f")])
    assert ids(outbox) == ["a", "b", "c", "d", "f"]
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_full_disk_keeps_no_delivered_segment_and_no_wrong_count(
    tmp_path: Path, record: Callable[[str], Record]
) -> None:
    outbox = Outbox(tmp_path, 8000)
    for number in range(8):
        outbox.append([record(f"{number}a"), record(f"{number}b")])
    assert len(list(tmp_path.glob("*.jsonl"))) > 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OutboxFullError, match="free space"):
            outbox.append([record("refused")])
        outbox.advance(outbox.pending(MANY), {"audit/0": 16})
        assert outbox.undelivered == 0
        assert len(list(tmp_path.glob("*.jsonl"))) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outbox.bookmarks == {"audit/0": 16}
    outbox.append([record("after")])
    assert ids(outbox) == ["after"]
    outbox.advance([], {})
    outbox.close()
    assert ids(Outbox(tmp_path, 8000)) == ["after"]


def test_a_position_that_no_disk_took_leads_to_no_delivered_segment(
    tmp_path: Path, record: Callable[[str], Record]
) -> None:
    outbox = Outbox(tmp_path, 8000)
    for number in range(8):
        outbox.append([record(f"{number}a"), record(f"{number}b")])
    first = outbox.pending(15)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        outbox.advance(first, {"audit/0": 15})
        outbox.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = Outbox(tmp_path, 8000)
    assert ids(again)[-1] == "7b"
    assert again.undelivered < 16
    assert again.bookmarks == {}


def test_an_outbox_has_one_owner(tmp_path: Path) -> None:
    first = Outbox(tmp_path, 1000)
    with pytest.raises(UnavailableError, match="give each its own state_dir"):
        Outbox(tmp_path, 1000)
    first.close()
    Outbox(tmp_path, 1000).close()


def test_waiting_tells_whether_something_is_there(
    tmp_path: Path, record: Callable[[str], Record]
) -> None:
    outbox = Outbox(tmp_path, 1 << 20)
    assert not outbox.wait(0.01)
    outbox.append([record("a")])
    assert outbox.wait(0.01)


def test_files_that_are_no_segments_are_named_and_left_alone(
    tmp_path: Path, record: Callable[[str], Record], caplog: pytest.LogCaptureFixture
) -> None:
    strays = ("junk.jsonl", "7.jsonl", "-00000000001.jsonl", "\u0661" * 12 + ".jsonl")
    for name in strays:
        (tmp_path / name).write_text("x")
    outbox = Outbox(tmp_path, 1 << 20)
    outbox.append([record("a")])
    assert ids(outbox) == ["a"]
    outbox.advance(outbox.pending(MANY), {})
    outbox.close()
    assert all((tmp_path / name).exists() and name in caplog.text for name in strays)
