"""Draws answers from the policy as it is now, from the very distribution that it is scored by.

Prompts of one length go together, so that nothing is padded and no model needs a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from learner.buckets import TokenSequence
from learner.policy import Policy

BATCH = 32


def draw(
    policy: Policy, questions: Sequence[TokenSequence], most_tokens: int, room: int, seed: int
) -> list[tuple[int, ...]]:
    """Draw one answer to each prompt, at its temperature; the responses given are ignored.

    An answer ends with the end of its turn, after ``most_tokens``, or where prompt and answer fill
    ``room``. Equal seeds and questions give equal answers.
    """
    found: list[tuple[int, ...]] = [()] * len(questions)
    generator = torch.Generator().manual_seed(seed)

    def kind(place: int) -> tuple[int, float]:
        return len(questions[place].prompt_ids), questions[place].temperature

    for (length, temperature), group in groupby(sorted(range(len(questions)), key=kind), key=kind):
        places, count = list(group), min(most_tokens, room - length)
        for at in range(0, len(places), BATCH):
            part = places[at : at + BATCH]
            prompts = [questions[place].prompt_ids for place in part]
            drawn = policy.draw_each(prompts, count, generator, temperature)
            for place, (answer, _) in zip(part, drawn, strict=True):
                found[place] = answer
    return found
