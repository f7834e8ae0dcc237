"""What all events share: an id, a moment, and the name and version of their type."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

Id = Annotated[str, Meta(min_length=1, max_length=128)]
Score = Annotated[float, Meta(ge=-1.0, le=1.0)]
Moment = Annotated[datetime, Meta(tz=True)]


class Event(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What all events share. ``TYPE`` and ``VERSION`` go into the CloudEvents ``type``."""

    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1

    id: Id
    time: Moment
