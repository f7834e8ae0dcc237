"""A policy version that is ready, and how the engine is asked for it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct, field

from contracts.events.event import Event, Id, Moment


class Release(Event, frozen=True, kw_only=True):
    """A new policy version is ready. ``version`` is the sha256 of its manifest, in hex."""

    TYPE: ClassVar[str] = "headrace.release"

    policy: Id
    version: Id
    sequence: Annotated[int, Meta(ge=1)]
    parent: Id
    form: Literal["lora", "full"] = "lora"
    location: str
    newest_feedback_time: Moment
    metrics: dict[str, float] = field(default_factory=dict)


class Candidate(Struct, frozen=True, kw_only=True):
    """A version the engine serves or is asked to; ``location`` is empty for the base model."""

    version: Id
    sequence: int = 0
    location: str = ""
    form: Literal["lora", "full"] = "lora"
