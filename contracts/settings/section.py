"""What a part of the settings is, and the kinds of numbers in it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

CENTURY = 100 * 365.25 * 86_400.0

Positive = Annotated[float, Meta(gt=0.0)]
Span = Annotated[float, Meta(gt=0.0, le=CENTURY)]
"""Seconds that are added to a date or taken from it: no calendar has the end of longer ones."""

NonNegative = Annotated[float, Meta(ge=0.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the tree; unknown names are refused, so that a typo is seen."""
