"""Ids as inputs: UUIDv7 for what happens, UUIDv5 for what follows from it.

An event that is derived from others (a reward, a sample) gets the same id each time it is derived,
so that a replay after a crash produces duplicates that every reader recognises.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable
from hashlib import sha1

from contracts.clock import Clock

NewId = Callable[[], str]

POOLED = 256
"""Random numbers asked of the system at once. No process of ours forks after its first id."""

_FIXED_BITS = 0xF << 76 | 0b11 << 62
"""Version and variant."""

_NAMESPACE = uuid.UUID("6f1c2d1e-6c0b-5a57-9a3c-5b1d6a1f7e01")


def uuid7_ids(clock: Clock, rng: random.Random | None = None) -> NewId:
    """Return a source of UUIDv7 ids (RFC 9562, section 5.7), ordered by the clock's milliseconds.

    With ``rng`` the random bits are reproducible; without it they come from the system.
    """

    # The system is asked for many at once: a call costs more than all the rest here. `list.pop` is
    # one step for all threads.
    pool: list[int] = []

    def random_bits() -> int:
        if rng:
            return rng.getrandbits(74)
        while True:
            try:
                return pool.pop()
            except IndexError:
                drawn = os.urandom(10 * POOLED)
                parts = (drawn[start : start + 10] for start in range(0, len(drawn), 10))
                pool.extend(int.from_bytes(part) & ((1 << 74) - 1) for part in parts)

    def new_id() -> str:
        millis = int(clock.now().timestamp() * 1000) & ((1 << 48) - 1)
        noise = random_bits()
        value = (
            millis << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62 | noise & ((1 << 62) - 1)
        )
        return _text(value)

    return new_id


def derived_id(*parts: str) -> str:
    """Return the UUIDv5 of a tuple of strings: equal parts, equal id (RFC 9562, section 5.5)."""
    # As uuid.uuid5, which makes an object of it and takes twice the time.
    digest = sha1(_NAMESPACE.bytes + "\x1f".join(parts).encode(), usedforsecurity=False).digest()
    value = int.from_bytes(digest[:16]) & ~_FIXED_BITS | 0x5 << 76 | 0b10 << 62
    return _text(value)


def _text(value: int) -> str:
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
