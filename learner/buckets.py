"""Groups sequences of like length and pads them to the right; knows nothing of models.

With a causal model right padding needs no attention mask: no token sees what comes after it.
Shape suffixes: b sequences, l tokens of prompt and response, t response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import Struct
from torch import Tensor


class TokenSequence(Struct, frozen=True):
    """A prompt, the response to score, and the sampling temperature."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    temperature: float = 1.0

    def __len__(self) -> int:
        """Return the number of tokens in all."""
        return len(self.prompt_ids) + len(self.response_ids)


class Bucket(Struct, frozen=True):
    """Padded tensors of a few sequences; ``members`` are their places in the batch.

    ``rows_bt`` are the positions whose hidden state predicts each response token.
    """

    members: tuple[int, ...]
    ids_bl: Tensor
    rows_bt: Tensor
    targets_bt: Tensor
    mask_bt: Tensor
    temperature_b: Tensor
    prompt_end_b: Tensor


def bucketed(sequences: Sequence[TokenSequence], size: int) -> list[Bucket]:
    """Return buckets of at most ``size`` sequences, shortest first; order is deterministic."""
    order = sorted(range(len(sequences)), key=lambda place: (len(sequences[place]), place))
    return [_bucket(sequences, order[at : at + size]) for at in range(0, len(order), size)]


def padded(rows: Sequence[Sequence[float]], width: int, fill: float = 0.0) -> Tensor:
    """Return rows of numbers as a float32 tensor, padded on the right to ``width``."""
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _bucket(sequences: Sequence[TokenSequence], members: list[int]) -> Bucket:
    chosen = [sequences[place] for place in members]
    length = max(len(sequence) for sequence in chosen)
    width = max(len(sequence.response_ids) for sequence in chosen)
    ids, rows, targets, mask = [], [], [], []
    for sequence in chosen:
        tokens = [*sequence.prompt_ids, *sequence.response_ids]
        first, count = len(sequence.prompt_ids) - 1, len(sequence.response_ids)
        ids.append(tokens + [0] * (length - len(tokens)))
        rows.append([*range(first, first + count), *[0] * (width - count)])
        targets.append([*sequence.response_ids, *[0] * (width - count)])
        mask.append([True] * count + [False] * (width - count))
    return Bucket(
        members=tuple(members),
        ids_bl=torch.tensor(ids),
        rows_bt=torch.tensor(rows),
        targets_bt=torch.tensor(targets),
        mask_bt=torch.tensor(mask),
        temperature_b=torch.tensor([sequence.temperature for sequence in chosen]),
        prompt_end_b=torch.tensor([len(sequence.prompt_ids) - 1 for sequence in chosen]),
    )
