"""What of a sample can be learned from, by its tokens alone: decided once, where it is read.

What cannot is not kept: a record may hold many times the tokens that a model takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from learner.experience import LEAST_TEMPERATURE, Experience


class Limits(Struct, frozen=True):
    """What can be learned from: prompt and answer of at most ``max_tokens`` together, of ids below
    ``vocabulary``. Violations are corrected to ``safe_ids``, if there are any."""

    max_tokens: int
    vocabulary: int
    safe_ids: tuple[int, ...] = ()


def unusable(experience: Experience, max_tokens: int, vocabulary: int) -> str | None:
    """Return why an experience cannot be scored, None when it can."""
    if experience.unusable:
        return experience.unusable
    if not experience.prompt_ids or not experience.token_ids:
        return "no-tokens"
    ids = (*experience.prompt_ids, *experience.token_ids)
    if len(ids) > max_tokens:
        return "too-long"
    if min(ids) < 0 or max(ids) >= vocabulary:
        return "unknown-token"
    if not experience.temperature >= LEAST_TEMPERATURE:
        return "no-temperature"
    return None


def can_be_scored(
    prompt_ids: Sequence[int], response_ids: Sequence[int], max_tokens: int, vocabulary: int
) -> bool:
    """Tell whether a response to a prompt can be, at temperature 1."""
    ids = (*prompt_ids, *response_ids)
    known = bool(prompt_ids) and bool(response_ids) and len(ids) <= max_tokens
    return known and min(ids) >= 0 and max(ids) < vocabulary


def trimmed(experience: Experience, limits: Limits) -> Experience:
    """Return an experience without the tokens that nothing can be learned from, saying why.

    An answer that cannot be scored may still be corrected: then its prompt is kept.
    """
    e, most, vocabulary = experience, limits.max_tokens, limits.vocabulary
    reason = unusable(e, most, vocabulary) or ""
    wanted = e.correction_ids or (limits.safe_ids if e.violation and e.token_ids else ())
    told = can_be_scored(e.prompt_ids, wanted, most, vocabulary)
    if wanted and not told:
        e = replace(e, correction_ids=(), uncorrected=True)
    if not reason:
        return e
    paired = told and can_be_scored(e.prompt_ids, e.token_ids, most, vocabulary)
    return replace(
        e,
        unusable=reason,
        prompt_ids=e.prompt_ids if told else (),
        token_ids=e.token_ids if paired else (),
        logprobs=(),
    )


def without_tokens(experience: Experience) -> Experience:
    """Return an experience that teaches nothing, as far as it is still told of."""
    return replace(experience, prompt_ids=(), token_ids=(), logprobs=(), correction_ids=())
