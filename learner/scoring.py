"""What policy, anchor and base say of experiences before an update learns from them.

Shape suffixes: b experiences, t response tokens (padded and masked), h hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from learner.anchor import Anchor
from learner.buckets import TokenSequence, bucketed
from learner.experience import Experience
from learner.policy import Policy


class Scored(Struct, frozen=True):
    """A usable experience with what policy, anchor and base said of it before the update.

    ``prox`` and ``anchor`` are log-probabilities per response token; an empty ``prox`` says that
    the policy has not changed since. ``end_h`` is the base's hidden state at the end of the prompt.
    """

    experience: Experience
    prox: list[float]
    anchor: list[float]
    end_h: Tensor


def score(
    policy: Policy,
    anchor: Anchor,
    experiences: Sequence[Experience],
    tokens: int,
    *,
    with_prox: bool = True,
) -> list[Scored]:
    """Return every experience with its log-probabilities under the policy and under the anchor.

    The base has read each prompt for ``end_h``, whatever the anchor is: what the baseline learned
    to read does not change when the anchor does.
    """
    sequences = [sequence_of(experience) for experience in experiences]
    prox = policy.logprobs(sequences, tokens) if with_prox else [[] for _ in sequences]
    if anchor.is_base:
        anchored, ends = _under_base(policy, sequences, tokens)
    else:
        anchored = anchor.logprobs(policy, sequences, tokens)
        first = [replace(one, response_ids=one.response_ids[:1]) for one in sequences]
        _, ends = _under_base(policy, first, tokens)
    return [Scored(*each) for each in zip(experiences, prox, anchored, ends, strict=True)]


def _under_base(
    policy: Policy, sequences: Sequence[TokenSequence], tokens: int
) -> tuple[list[list[float]], list[Tensor]]:
    """Return the base's log-probabilities of each response, and its state at each prompt's end."""
    logprobs: dict[int, list[float]] = {}
    ends: dict[int, Tensor] = {}
    with torch.no_grad():
        for bucket in policy.share(bucketed(sequences, tokens)):
            logp_bt, end_bh = policy.score(bucket, adapted=False)
            for row, place in enumerate(bucket.members):
                logprobs[place] = logp_bt[row][bucket.mask_bt[row]].tolist()
                ends[place] = end_bh[row]
    logprobs, ends = policy.ranks.gathered(logprobs), policy.ranks.gathered(ends)
    places = range(len(sequences))
    return [logprobs[place] for place in places], [ends[place] for place in places]


def sequence_of(experience: Experience) -> TokenSequence:
    """Return an answer as the policy scores it: at the temperature it was drawn at."""
    return TokenSequence(experience.prompt_ids, experience.token_ids, experience.temperature)
