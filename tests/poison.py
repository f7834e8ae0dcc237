"""Records that may be no events: golden messages with something wrong in them, all by one seed.

A record is changed where its structure is: a field dropped, doubled, renamed or given a value of
another kind, the bytes cut or broken, headers that lie. Some come out valid, as they should.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec

from contracts.broker import Received
from contracts.codec import MAX_VALUE_BYTES, Headers, ce_type
from contracts.events import EVENTS, Event
from contracts.topics import TOPICS, Topic

GOLDEN = Path(__file__).parent / "contracts" / "golden"
SEED_VARIABLE = "HEADRACE_POISON_SEED"

DECISIONS = 2_000
"""Different ids of decisions."""

Place = tuple[Any, Any]
"""A container (object or array) and a key or index in it."""

HUGE = (
    b"1e400",
    b"-1e400",
    b"1e308",
    b"-0.0",
    b"1" * 400,
    b"1" * 5000,
    b"18446744073709551616",
    b"-9223372036854775809",
    b"NaN",
    b"-Infinity",
    b"Infinity",
    b"0x10",
    b"01",
)
TIMES = (
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "9999-12-31T23:59:59.9999999Z",
    "1600-02-29T00:00:00Z",
    "2500-01-01T00:00:00Z",
    "2026-11-22T24:00:00Z",
    "2026-11-22T12:00:00",
    "2026-02-30T12:00:00Z",
    "yesterday",
)
DEEP = "[" * 20_000 + "]" * 20_000
TEXTS = ("", "\x00", "\u202e" * 9, "x" * 129, "x" * 5000, "\U0001f4a9" * 64, '"\\', DEEP, *TIMES)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**53 + 1,
    0.5,
    [],
    {},
    [None],
    [[]],
    {"": None},
    {"id": "x"},
    *TEXTS,
)
BROKEN_TEXT = (b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xff\xfe"', b'"\xc0\xaf"', b'"\x01"', b'"\\x"')
MARK = "\u2063poison\u2063"
"""Stands in the JSON for raw bytes that no JSON encoder writes."""


class RawName(str):
    """A header name that is sent as these bytes: the client would refuse what is no UTF-8."""

    def __new__(cls, raw: bytes) -> RawName:
        made = super().__new__(cls, raw.decode("latin-1"))
        made.raw = raw
        return made

    raw: bytes

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        del encoding, errors
        return self.raw


def poison_seed() -> int:
    """Return the seed of this run and print it; set the variable to repeat a run."""
    given = os.environ.get(SEED_VARIABLE)
    seed = int(given) if given else random.SystemRandom().getrandbits(32)
    print(f"{SEED_VARIABLE}={seed}")
    return seed


def golden_messages() -> dict[str, tuple[Topic, Any]]:
    """Return every golden message, decoded, by its ``ce_type``, with its topic."""
    topics: dict[type[Event], Topic] = {kind: t for t in TOPICS for kind in t.events}
    return {
        ce_type(kind): (
            topics[kind],
            msgspec.json.decode((GOLDEN / f"{ce_type(kind)}.json").read_bytes()),
        )
        for kind in EVENTS
    }


class Poisoner:
    """Makes records; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._golden = golden_messages()
        self._damages: tuple[Callable[[bytes], bytes | None], ...] = (
            self._cut,
            self._flip,
            self._splice,
            self._oversize,
            self._deepen,
            lambda value: b"\xef\xbb\xbf" + value,
            lambda value: value.decode("latin-1").encode("utf-16"),
            lambda value: value + value,
            lambda _: b"",
            lambda _: None,
        )

    def records(self, topics: tuple[Topic, ...], count: int) -> Iterator[Received]:
        """Yield records of these topics, each with the next offset of its topic."""
        names = [name for name, (topic, _) in self._golden.items() if topic in topics]
        offsets = dict.fromkeys((topic.name for topic in topics), 0)
        for _ in range(count):
            name = self._rng.choice(names)
            topic = self._golden[name][0]
            received = Received(
                topic, 0, offsets[topic.name], self._key(), self._value(name), self._headers(name)
            )
            offsets[topic.name] += 1
            yield received

    def _value(self, name: str) -> bytes | None:
        if self._rng.random() < 0.05:
            name = self._rng.choice(list(self._golden))  # another event in this one's place
        message = deepcopy(self._golden[name][1])
        self._identify(message, of_decision=name.startswith("headrace.decision"))
        raw: list[bytes] = []
        for _ in range(self._rng.choice((0, 1, 1, 1, 2, 5))):
            self._spoil(message, raw)
        value = msgspec.json.encode(message)
        for literal in raw:
            value = value.replace(f'"{MARK}"'.encode(), literal, 1)
        if self._rng.random() < 0.15:
            return self._rng.choice(self._damages)(value)
        return value

    def _identify(self, message: Any, *, of_decision: bool) -> None:
        """Give ids that are sometimes used twice, and decisions that others speak of."""
        decision = f"decision-{self._rng.randrange(DECISIONS)}"
        if of_decision:
            message["id"] = decision
        else:
            message["id"] = f"event-{self._rng.randrange(100 * DECISIONS)}"
            if "decision_id" in message:
                message["decision_id"] = decision

    def _spoil(self, message: Any, raw: list[bytes]) -> None:
        """Change one field, at any depth."""
        rng = self._rng
        places = list(_places(message))
        if not places:
            return
        holder, key = rng.choice(places)
        deed = rng.choice(("drop", "rename", "copy", "value", "value", "huge", "text", "double"))
        if deed == "drop":
            del holder[key]
        elif deed == "rename" and isinstance(holder, dict):
            holder[rng.choice((key.upper(), f"{key} ", "", "x" * 5000))] = holder.pop(key)
        elif deed == "copy":
            other, place = rng.choice(places)
            holder[key] = deepcopy(other[place])
        elif deed == "value":
            holder[key] = deepcopy(rng.choice(VALUES))
        elif deed == "double" and isinstance(holder, dict):
            raw.append(b'1,"' + str(key).encode() + b'":' + rng.choice((b"null", b'"x"', b"2")))
            holder[f"{key} "] = MARK
        else:
            raw.append(rng.choice(HUGE if deed == "huge" else BROKEN_TEXT))
            holder[key] = MARK

    def _key(self) -> bytes | None:
        return self._rng.choice((None, b"", b"session-4711", b"\xff\xfe", b"k" * 100_000))

    def _headers(self, name: str) -> Headers:
        rng = self._rng
        declared: list[bytes | None] = [name.encode()] * 30
        declared += [rng.choice(list(self._golden)).encode(), None, b"", b"\xff\xfe"]
        declared += [name.replace(".v1", version).encode() for version in (".v0", ".v2", ".v9999")]
        declared += [name.upper().encode(), name.encode() + b"\n", b"\x01" * 300_000]
        odd: list[tuple[str, bytes | None]] = [
            ("traceparent", b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"),
            ("traceparent", rng.choice((b"\xff", b"", b"00-0-0-0", b"x" * 5000, None))),
            ("tracestate", rng.choice((b"a=b", b"=,=" * 2000, b"\xff", None))),
            ("ce_id", None),
            ("\x00" * 3000, b"\xff" * 3000),
            ("", b""),
        ]
        headers: Any = rng.sample(odd, rng.choice((0, 0, 1, 3, 6)))
        if rng.random() < 0.8:
            headers.append(("ce_type", rng.choice(declared)))
        if rng.random() < 0.02:
            headers *= 50
        found: Headers = headers  # a client gives None for a header without a value
        return found

    def _cut(self, value: bytes) -> bytes:
        return value[: self._rng.randrange(len(value))]

    def _flip(self, value: bytes) -> bytes:
        broken = bytearray(value)
        for _ in range(self._rng.choice((1, 1, 3, 30))):
            broken[self._rng.randrange(len(broken))] = self._rng.randrange(256)
        return bytes(broken)

    def _splice(self, value: bytes) -> bytes:
        start, end = sorted(self._rng.randrange(len(value)) for _ in range(2))
        return value[:end] + value[start:]

    def _oversize(self, value: bytes) -> bytes:
        """Pad with white space or a field nobody knows, around the largest size."""
        size = MAX_VALUE_BYTES + self._rng.choice((-1, 0, 1, 200_000)) - len(value)
        if self._rng.random() < 0.5:
            return value + b" " * size
        return value[:-1] + b',"z":"' + b"z" * (size - 7) + b'"}'

    def _deepen(self, value: bytes) -> bytes:
        depth = self._rng.choice((100, 2_000, 100_000))
        opening, closing = self._rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        inner = opening * depth + b"1" + closing * depth
        name = self._rng.choice((b"z", b"messages", b"detail", b"features", b"correction", b"id"))
        return value[:-1] + b',"' + name + b'":' + inner + b"}"


def _places(value: Any) -> Iterator[Place]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
