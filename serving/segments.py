"""Which policy serves a request: the first segment that fits its tier, language and region."""

from __future__ import annotations

from collections.abc import Iterable

from contracts.settings import Segment
from serving.api_keys import Traits


def policy_for(segments: Iterable[Segment], general: str, traits: Traits) -> str:
    """Return the policy of the first segment that fits, ``general`` when none does."""
    for segment in segments:
        if _fits(segment, traits):
            return segment.policy
    return general


def known_best(by_key: Traits | None, by_request: Traits) -> Traits:
    """Return the traits that hold: what the key says is the operator's word and wins."""
    if by_key is None:
        return by_request
    return Traits(
        tier=by_key.tier or by_request.tier,
        language=by_key.language or by_request.language,
        region=by_key.region or by_request.region,
    )


def _fits(segment: Segment, traits: Traits) -> bool:
    return (
        segment.tier in ("", traits.tier)
        and segment.language in ("", traits.language)
        and segment.region in ("", traits.region)
    )
