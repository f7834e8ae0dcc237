"""What a detector found, and the rule that all detectors keep so that streams can be judged.

Every detector is *local*: whether a hit begins at a place depends on the character before it and
on `WINDOW` characters from it on, on nothing else. So a growing text can be judged piece by piece
(`guard.hold_back`), and the pieces together say what the whole would have said.
"""

from __future__ import annotations

from typing import NamedTuple

WINDOW = 420
"""Characters within which every hit ends, and one more that shows that it has ended."""


class Hit(NamedTuple):
    """The rule that fired, the text it found, and where that begins."""

    rule: str
    text: str
    start: int
