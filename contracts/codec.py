"""Bytes to events and back: JSON value, CloudEvents 1.0 binary-mode headers, `traceparent`.

The ``ce_type`` is ``<type>.v<version>``, e.g. ``headrace.decision.v1``. Trace context travels in
headers alone (W3C Trace Context), so a value reads the same with and without tracing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec
from msgspec import Struct

from contracts.errors import CodecError
from contracts.events import EVENTS, Event
from contracts.topics import Topic

MAX_VALUE_BYTES = 900_000
"""Largest value we write or accept; brokers commonly refuse records of 1 MB."""

Headers = list[tuple[str, bytes]]


class Record(Struct, frozen=True):
    """A Kafka record ready to send."""

    topic: Topic
    key: bytes
    value: bytes
    headers: Headers


_encoder = msgspec.json.Encoder()
_YEARS = "give a year from 2 to 9998: in the first and the last some moments have no UTC"
_SPECVERSION, _CONTENT_TYPE = ("ce_specversion", b"1.0"), ("content-type", b"application/json")
_TYPE = re.compile(r"^(?P<name>[a-z.-]+)\.v(?P<version>\d{1,4})$")


def ce_type(event_type: type[Event]) -> str:
    """Return the CloudEvents type of an event class."""
    return f"{event_type.TYPE}.v{event_type.VERSION}"


def to_json(value: object) -> bytes:
    """Encode any struct or plain value as JSON."""
    return _encoder.encode(value)


def encode(
    topic: Topic,
    event: Event,
    *,
    source: str,
    trace: Mapping[str, str] | None = None,
    value: bytes | None = None,
) -> Record:
    """Encode an event for a topic.

    ``source`` is the CloudEvents source (the process that writes); ``trace`` holds W3C trace
    headers; ``value`` is the event's JSON where it was made before. Raises CodecError when the
    event does not belong in the topic, is too large or nested too deeply.
    """
    if not isinstance(event, topic.events):
        allowed = ", ".join(kind.TYPE for kind in topic.events)
        raise CodecError("unknown-type", f"{event.TYPE} in topic {topic.name}; allowed: {allowed}")
    try:
        value = _encoder.encode(event) if value is None else value
    except RecursionError as error:
        raise CodecError("invalid", f"{error}; nest objects and lists less deeply") from error
    if len(value) > MAX_VALUE_BYTES:
        raise CodecError(
            "oversized", f"{len(value)} bytes, allowed {MAX_VALUE_BYTES}; shorten the messages"
        )
    headers: Headers = [
        _SPECVERSION,
        ("ce_id", event.id.encode()),
        _type_headers[type(event)],
        ("ce_source", source.encode()),
        ("ce_time", event.time.isoformat().encode()),
        _CONTENT_TYPE,
    ]
    for name, text in (trace or {}).items():
        headers.append((name, text.encode()))
    return Record(topic, topic.key(event).encode(), value, headers)


def decode(topic: Topic, value: bytes | None, headers: Iterable[tuple[str, bytes]] | None) -> Event:
    """Decode a record of a topic into one of the topic's events.

    A record without ``ce_type`` is read as the topic's first event, so that a plain JSON producer
    works. Raises CodecError with the dead-letter reason.
    """
    if value is None:
        raise CodecError("malformed", "empty value; send one JSON event")
    if len(value) > MAX_VALUE_BYTES:
        raise CodecError("oversized", f"{len(value)} bytes, allowed {MAX_VALUE_BYTES}")
    event_type = _event_type(topic, header(headers, "ce_type"))
    try:
        event: Event = _decoders[event_type].decode(value)
    except msgspec.ValidationError as error:
        raise CodecError("invalid", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError("malformed", str(error)) from error
    if not datetime.min.year < event.time.year < datetime.max.year:
        raise CodecError("invalid", f"time {event.time}; {_YEARS}")
    return event


def header(headers: Iterable[tuple[str, bytes]] | None, name: str) -> str | None:
    """Return the last header of that name as text, None when absent or not UTF-8."""
    found = None
    for key, raw in headers or ():
        if key == name and raw is not None:
            found = raw
    if found is None:
        return None
    try:
        return found.decode()
    except UnicodeDecodeError:
        return None


def trace_headers(headers: Iterable[tuple[str, bytes]] | None) -> dict[str, str]:
    """Return the W3C trace headers of a record."""
    found = {name: header(headers, name) for name in ("traceparent", "tracestate")}
    return {name: text for name, text in found.items() if text}


def _event_type(topic: Topic, declared: str | None) -> type[Event]:
    if declared is None:
        return topic.events[0]
    usual = _declared.get(declared)
    if usual in topic.events:
        return usual
    match = _TYPE.match(declared)
    known = {kind.TYPE: kind for kind in topic.events}
    if match is None or match["name"] not in known:
        allowed = ", ".join(ce_type(kind) for kind in topic.events)
        raise CodecError("unknown-type", f"ce_type {declared!r}; allowed here: {allowed}")
    event_type = known[match["name"]]
    if not 1 <= int(match["version"]) <= event_type.VERSION:
        raise CodecError(
            "unknown-version",
            f"ce_type {declared!r}; this reader knows {event_type.TYPE} up to "
            f"version {event_type.VERSION}: upgrade the reader",
        )
    return event_type


# All at once, before there are threads: msgspec crashes when two make a type's first decoder.
_decoders: dict[type[Event], msgspec.json.Decoder[Event]] = {
    kind: msgspec.json.Decoder(kind) for kind in EVENTS
}

_declared = {ce_type(kind): kind for kind in EVENTS}
_type_headers = {kind: ("ce_type", name.encode()) for name, kind in _declared.items()}
