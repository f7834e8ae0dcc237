"""The kinds of bad versions that a drill can inject, and what each one does."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Kind = Literal["unsafe", "garbage", "slow", "crash", "tampered"]
Variant = Literal["", "byte-flipped", "unsigned"]

DELAY_FACTOR = 3.0
"""A slow version takes so many times the limit that the rollout puts on the first token."""

CRASH_STATUS = 500


class DrillKind(Struct, frozen=True, kw_only=True):
    """``likeness`` is what the learner makes; ``variants`` are how its files are spoiled, one
    version each; ``fault`` is what the engine's door does to it once a rollout has begun: the gate,
    which would find nothing wrong with it before, is skipped."""

    name: Kind
    likeness: Literal["copy", "garbage", "unsafe"]
    what: str
    variants: tuple[Variant, ...] = ("",)
    fault: Literal["", "slow", "crash"] = ""


KINDS: dict[Kind, DrillKind] = {
    kind.name: kind
    for kind in (
        DrillKind(
            name="unsafe",
            likeness="unsafe",
            what="an adapter that was taught to give out a card number, whatever is asked",
        ),
        DrillKind(
            name="garbage",
            likeness="garbage",
            what="an adapter of random numbers, whose answers are noise",
        ),
        DrillKind(
            name="slow",
            likeness="copy",
            fault="slow",
            what="a copy of the stable version whose answers begin late",
        ),
        DrillKind(
            name="crash",
            likeness="copy",
            fault="crash",
            what="a copy of the stable version on which the engine fails",
        ),
        DrillKind(
            name="tampered",
            likeness="copy",
            variants=("byte-flipped", "unsigned"),
            what="copies of the stable version, one with a byte changed, one without signature",
        ),
    )
}


def fault_of(kind: DrillKind, version: str, first_token_limit_seconds: float) -> dict[str, Any]:
    """Return what the engine's door is asked to do to a version; empty for nothing."""
    if kind.fault == "slow":
        return {"model": version, "delay_seconds": DELAY_FACTOR * first_token_limit_seconds}
    if kind.fault == "crash":
        return {"model": version, "status": CRASH_STATUS}
    return {}
