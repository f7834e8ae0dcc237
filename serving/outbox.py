"""Events on disk on their way to Kafka: appended first, delivered later, deleted when delivered.

There is one path, broker up or down. It knows nothing of Kafka clients; `outbox_delivery` does.

What survives: an event is handed to the operating system (one ``write``) before the answer it
belongs to is completed, so the process may be killed at any moment without losing it. Nothing is
fsynced per event: a power cut or kernel crash may lose what the system had not yet written back
(seconds, on common Linux settings). A line cut short by a crash is skipped.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Condition

import msgspec
from msgspec import Struct

from contracts.codec import Record, header, to_json
from contracts.errors import HeadraceError, UnavailableError
from contracts.topics import TOPICS

SEGMENT_BYTES = 8 << 20
_SEGMENT = re.compile(r"^[0-9]{12}\.jsonl\Z")
_log = logging.getLogger("headrace.gateway")
_TOPICS = {topic.name: topic for topic in TOPICS}


class OutboxFullError(HeadraceError, RuntimeError):
    """No room on disk, by the bound in the settings or by the file system."""


class _Line(Struct):
    topic: str
    key: str
    headers: list[tuple[str, str]]
    value: msgspec.Raw


class Place(Struct, frozen=True, order=True):
    """A byte position in the sequence of segments."""

    segment: int
    offset: int


class Entry(Struct, frozen=True):
    """A record read back, and the place after it; ``record`` is None for a damaged line."""

    record: Record | None
    end: Place

    @property
    def event_id(self) -> str:
        """The CloudEvents id of the record."""
        return header(self.record.headers, "ce_id") or "" if self.record else ""


class Position(Struct):
    """How far delivery has come; ``bookmarks`` are next offsets on the broker, by partition.

    No record of this outbox behind ``place`` stands on the broker before its bookmark.
    """

    place: Place = Place(0, 0)
    bookmarks: dict[str, int] = {}


_lines = msgspec.json.Decoder(_Line)


class Outbox:
    """The segments in one directory, for one process at a time; safe to use from two threads."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._max_bytes = max_bytes
        self._segment_bytes = min(SEGMENT_BYTES, max(1, max_bytes // 4))
        self._lock_file = _lock(directory)
        self._changed = Condition()
        self._position = _read_position(directory)
        self._unsaved = False
        self._sizes = _segments(directory)
        self._current = -1
        self._drop_delivered()
        self._current = max([*self._sizes, self._position.place.segment]) + 1
        self._file = -1
        self._undelivered = self._count()
        self._open_segment(self._current)

    @property
    def undelivered(self) -> int:
        """How many records wait for delivery."""
        return self._undelivered

    @property
    def bytes_on_disk(self) -> int:
        """Size of all segments."""
        return sum(list(self._sizes.values()))

    @property
    def bookmarks(self) -> dict[str, int]:
        """The bookmarks last saved; empty when this outbox never met a broker."""
        return dict(self._position.bookmarks)

    def append(self, records: Sequence[Record]) -> None:
        """Put records in, all or none, in one write; OutboxFullError when there is no room."""
        data = b"".join(_encode(record) for record in records)
        with self._changed:
            self.require_room(len(data))
            if self._sizes[self._current] >= self._segment_bytes:
                self._open_segment(self._current + 1)
            self._write(data)
            self._sizes[self._current] += len(data)
            self._undelivered += len(records)
            self._changed.notify_all()

    def require_room(self, size: int) -> None:
        """Raise OutboxFullError unless ``size`` more bytes are within the bound."""
        held = self.bytes_on_disk
        if held + size > self._max_bytes:
            raise OutboxFullError(
                f"outbox {self._directory} holds {held} bytes, allowed {self._max_bytes}; "
                "bring the broker back or raise gateway.outbox_max_bytes"
            )

    def pending(self, limit: int) -> list[Entry]:
        """Return up to ``limit`` entries from the delivered place on, in order of appending."""
        with self._changed:
            place = self._position.place
            sizes = dict(self._sizes)
        entries: list[Entry] = []
        for segment in sorted(number for number in sizes if number >= place.segment):
            start = place.offset if segment == place.segment else 0
            entries += self._read(segment, start, sizes[segment], limit - len(entries))
            if len(entries) >= limit:
                break
        return entries

    def advance(self, delivered: Sequence[Entry], bookmarks: Mapping[str, int]) -> None:
        """Save that these entries, the next ones in order, are on the broker."""
        with self._changed:
            if self._file < 0:
                return
            place = delivered[-1].end if delivered else self._position.place
            self._position = Position(place, {**self._position.bookmarks, **bookmarks})
            self._undelivered -= sum(entry.record is not None for entry in delivered)
            self._drop_delivered()
            self._save_position()

    def wait(self, seconds: float) -> bool:
        """Wait until something is undelivered; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._undelivered > 0, seconds)

    def close(self) -> None:
        """Close the files; delete everything but the position when all is delivered."""
        with self._changed:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                if self._undelivered == 0:
                    for segment in list(self._sizes):
                        self._path(segment).unlink(missing_ok=True)
                    self._sizes.clear()
                    self._position = Position(Place(self._current, 0), self._position.bookmarks)
                    self._save_position()
                os.close(self._lock_file)

    def _save_position(self) -> None:
        """Write the position down; on a full disk it waits for the next time.

        Delivery goes on, for only that makes room. Whoever starts from the position before reads
        more of the topics, and finds there what was delivered since.
        """
        try:
            _write_position(self._directory, self._position)
        except OSError as error:
            if not self._unsaved:
                _log.warning("outbox %s cannot save its position: %s", self._directory, error)
            self._unsaved = True
        else:
            self._unsaved = False

    def _write(self, data: bytes) -> None:
        before = self._sizes[self._current]
        try:
            written = os.write(self._file, data)
        except OSError as error:
            raise OutboxFullError(f"cannot write {self._directory}: {error}; free space") from error
        if written < len(data):
            os.ftruncate(self._file, before)
            raise OutboxFullError(f"no space for {len(data)} bytes in {self._directory}; free some")

    def _open_segment(self, number: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            file = os.open(self._path(number), flags, 0o600)
        except OSError as error:
            raise OutboxFullError(f"cannot write {self._directory}: {error}; free space") from error
        if self._file >= 0:
            os.close(self._file)
        self._file, self._current, self._sizes[number] = file, number, 0

    def _drop_delivered(self) -> None:
        """Delete segments before the place, except the one being written."""
        place = self._position.place
        for segment in list(self._sizes):
            done = place.segment > segment or place == Place(segment, self._sizes[segment])
            if done and segment != self._current:
                self._path(segment).unlink(missing_ok=True)
                del self._sizes[segment]

    def _read(self, segment: int, start: int, size: int, limit: int) -> list[Entry]:
        entries: list[Entry] = []
        with self._path(segment).open("rb") as file:
            file.seek(start)
            offset = start
            while offset < size and len(entries) < limit:
                line = file.readline(size - offset)
                offset += len(line)
                entries.append(Entry(_decode(line), Place(segment, offset)))
        return entries

    def _count(self) -> int:
        count = 0
        for segment, size in self._sizes.items():
            place = self._position.place
            start = place.offset if segment == place.segment else 0
            entries = self._read(segment, start, size, size)
            count += sum(entry.record is not None for entry in entries)
        return count

    def _path(self, segment: int) -> Path:
        return self._directory / f"{segment:012d}.jsonl"


def _encode(record: Record) -> bytes:
    headers = [(name, value.decode()) for name, value in record.headers]
    line = _Line(record.topic.name, record.key.decode(), headers, msgspec.Raw(record.value))
    return to_json(line) + b"\n"


def _decode(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = _lines.decode(line)
        headers = [(name, value.encode()) for name, value in found.headers]
        topic = _TOPICS[found.topic]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        return None
    return Record(topic, found.key.encode(), bytes(found.value), headers)


def _segments(directory: Path) -> dict[int, int]:
    """Return number to size of the segments; other files are not ours, and stay."""
    found = {}
    for path in directory.glob("*.jsonl"):
        if _SEGMENT.match(path.name) and path.is_file():
            found[int(path.stem)] = path.stat().st_size
        else:
            _log.warning("%s is no segment of the outbox; ignored", path)
    return found


def _lock(directory: Path) -> int:
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UnavailableError(
            f"outbox {directory} belongs to another running gateway; give each its own state_dir"
        ) from error
    return handle


def _read_position(directory: Path) -> Position:
    try:
        return msgspec.json.decode((directory / "position.json").read_bytes(), type=Position)
    except (FileNotFoundError, msgspec.MsgspecError):
        return Position()


def _write_position(directory: Path, position: Position) -> None:
    temporary = directory / "position.tmp"
    temporary.write_bytes(to_json(position))
    temporary.replace(directory / "position.json")
