"""Makes aiokafka read records with any header name; `contracts.header_names` says why.

Its compiled parser reads all batches. One that it fails on is read again from where it failed by
the parser in Python, over a buffer that decodes any name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

from contracts.header_names import NamesBuffer

_LENGTH_AT, _MAGIC_AT, _OVERHEAD = 8, 16, 12
_FIRST_WITH_HEADERS = 2


class _Batch:
    """A compiled batch and the bytes that it was made from."""

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch, self._raw = batch, raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for record in self._batch:
                read += 1
                yield record
        except UnicodeDecodeError:
            again: Any = iter(_DefaultRecordBatchPy(self._raw))
            again._buffer = NamesBuffer(again._buffer)
            yield from islice(again, read, None)


class _Records:
    """The batches of one fetch; used as aiokafka's own ``MemoryRecords``."""

    def __init__(self, raw: bytes) -> None:
        self._records, self._raw, self._place = MemoryRecords(raw), memoryview(raw), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)

    def next_batch(self) -> Any:
        """Return the next batch, None after the last."""
        batch = self._records.next_batch()
        if batch is None:
            return None
        (length,) = struct.unpack_from(">i", self._raw, self._place + _LENGTH_AT)
        raw = self._raw[self._place : self._place + _OVERHEAD + length]
        self._place += len(raw)
        return _Batch(batch, raw) if raw[_MAGIC_AT] >= _FIRST_WITH_HEADERS else batch


def read_any_header_name() -> None:
    """Make every aiokafka consumer of this process read any header name, from now on."""
    fetcher.MemoryRecords = _Records
