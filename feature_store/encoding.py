"""Keys, values and times as Feast's online stores keep them, encoded without Feast's objects.

`tests/feature_store` holds every byte equal to Feast's. The layout is internal to Feast, so it is
used for the version it is known of, and Feast's own reads and writes for any other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from feature_store.views import Value

FEAST = "0.67.0"
"""The version of Feast whose layout this is."""

STRING = 2  # feast.ValueType.STRING

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DOUBLE = struct.Struct("<cd")
_BYTES = [bytes([number]) for number in range(256)]
_STRING_TAG, _INT64_TAG, _DOUBLE_TAG = b"\x12", b"\x20", b"\x29"  # fields 2, 4, 5 of feast's Value


def key_prefix(join_key: str) -> bytes:
    """Return what the keys of a view with one entity begin with: Feast's version 3."""
    name = join_key.encode()
    return struct.pack("<III", 1, STRING, len(name)) + name + struct.pack("<I", STRING)


def entity_key(prefix: bytes, value: str) -> bytes:
    """Return the key of one entity from its view's `key_prefix`."""
    text = value.encode()
    return prefix + struct.pack("<I", len(text)) + text


def encoder(kind: type) -> Callable[[Value], bytes]:
    """Return the function that serializes a column's values as Feast's ``Value``.

    Nothing below checks the type of a value, so it is chosen by the declared type alone.
    """
    return _ENCODERS[kind]


def decode(data: bytes | None, parse: Callable[[bytes], Any]) -> Value:
    """Return the value in a serialized ``Value``; ``parse`` is its ``FromString``."""
    if not data:
        return None
    proto = parse(data)
    field = proto.WhichOneof("val")
    found: Value = getattr(proto, field) if field else None
    return found


def microseconds(moment: datetime) -> int:
    """Return a moment as whole microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def moment_of(micros: int) -> datetime:
    """Return the moment of `microseconds`."""
    return _EPOCH + timedelta(microseconds=micros)


def local_seconds(micros: int) -> int:
    """Return a moment as Feast writes it to sqlite: UTC without its zone, as epoch seconds of
    local time."""
    return int(moment_of(micros).replace(tzinfo=None).timestamp())


def utc_seconds(seconds: int) -> int:
    """Undo `local_seconds`, in whole seconds."""
    return int(datetime.fromtimestamp(seconds).replace(tzinfo=UTC).timestamp())


def timestamp(micros: int) -> bytes:
    """Return a moment as a serialized ``google.protobuf.Timestamp``."""
    seconds, rest = divmod(micros, 1_000_000)
    first = b"\x08" + _varint(seconds) if seconds else b""
    return first + b"\x10" + _varint(rest * 1000) if rest else first


def _varint(number: int) -> bytes:
    if 0 <= number < 128:
        return _BYTES[number]
    number &= 0xFFFF_FFFF_FFFF_FFFF
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _int64(value: Value) -> bytes:
    if value is None:
        return b""
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{number} is no 64-bit integer; features of type int are")
    return _INT64_TAG + _varint(number)


def _double(value: Value) -> bytes:
    if value is None or (number := float(value)) != number:  # not a number: unknown
        return b""
    return _DOUBLE.pack(_DOUBLE_TAG, number)


def _string(value: Value) -> bytes:
    if value is None:
        return b""
    text = str(value).encode()
    return _STRING_TAG + _varint(len(text)) + text


_ENCODERS: dict[type, Callable[[Value], bytes]] = {int: _int64, float: _double, str: _string}
