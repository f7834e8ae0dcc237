"""What a safety rule found in an exchange."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Share = Annotated[float, Meta(ge=0.0, le=1.0)]

Category = Literal[
    "too-long",
    "prompt-injection",
    "disallowed-topic",
    "guard-model",
    "personal-data",
    "secret",
    "canary-string",
    "disallowed-content",
    "forbidden-tool",
]


class Finding(Struct, frozen=True, kw_only=True):
    """One hit of a safety rule. ``where`` is the side of the exchange it was found in."""

    category: Category
    rule: str
    where: Literal["question", "answer"]
    score: Share = 1.0
