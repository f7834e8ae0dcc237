"""Ids as inputs: UUIDv7 for what happens, UUIDv5 for what follows from it.

An event that is derived from others (a reward, a sample) gets the same id each time it is derived,
so that a replay after a crash produces duplicates that every reader recognises.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable

from contracts.clock import Clock

NewId = Callable[[], str]

_NAMESPACE = uuid.UUID("6f1c2d1e-6c0b-5a57-9a3c-5b1d6a1f7e01")


def uuid7_ids(clock: Clock, rng: random.Random | None = None) -> NewId:
    """Return a source of UUIDv7 ids (RFC 9562, section 5.7), ordered by the clock's milliseconds.

    With ``rng`` the random bits are reproducible; without it they come from the system.
    """

    def new_id() -> str:
        millis = int(clock.now().timestamp() * 1000) & ((1 << 48) - 1)
        noise = rng.getrandbits(74) if rng else int.from_bytes(os.urandom(10)) & ((1 << 74) - 1)
        value = (
            millis << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62 | noise & ((1 << 62) - 1)
        )
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    return new_id


def derived_id(*parts: str) -> str:
    """Return the UUIDv5 of a tuple of strings: equal parts, equal id (RFC 9562, section 5.5)."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(parts)))
