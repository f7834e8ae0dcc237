"""Header names that are no UTF-8, which Kafka allows and its Python clients cannot read.

One such record, from a producer in another language, would stop every reader of its partition for
ever: the client fails in the middle of a batch and begins again at the same place. Both clients'
parsers in Python take a name by slicing a buffer and decoding the slice, so that another buffer
is all they need. Bytes that are no UTF-8 become ``\\xff`` in the name.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

from kafka.record.default_records import DefaultRecordBatch


class _Slice(bytes):
    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        del errors
        return super().decode(encoding, "backslashreplace")


class NamesBuffer(bytearray):
    """A batch of records whose slices decode whatever they hold."""

    def __getitem__(self, place: SupportsIndex | slice) -> Any:
        """Return one byte, or a slice."""
        found = super().__getitem__(place)
        return found if isinstance(found, int) else _Slice(found)


def read_any_header_name() -> None:
    """Make kafka-python read records with any header name, from now on in this process.

    Other batches are read as before, at the same speed.
    """
    read = DefaultRecordBatch._read_msg
    if hasattr(read, "reads_any_header_name"):
        return

    def read_any(batch: Any) -> Any:
        try:
            return read(batch)
        except UnicodeDecodeError:  # the place in the batch moves only when a record was read
            batch._buffer = NamesBuffer(batch._buffer)
            return read(batch)

    read_any.reads_any_header_name = True  # type: ignore[attr-defined] # marks that it was done
    DefaultRecordBatch._read_msg = read_any
