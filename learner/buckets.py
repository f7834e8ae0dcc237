"""Groups sequences of like length for one pass each; knows nothing of models.

A bucket holds its sequences padded to the right, and says how long each is, so that a model that
can leaves the padding out. With a causal model right padding needs no attention mask: no token sees
what comes after it. Shape suffixes: b sequences, l tokens of prompt and response, t response
tokens.
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

    ``rows_bt`` are the positions whose hidden state predicts each response token; the first of a
    sequence is the end of its prompt.
    """

    members: tuple[int, ...]
    ids_bl: Tensor
    rows_bt: Tensor
    targets_bt: Tensor
    mask_bt: Tensor
    temperature_b: Tensor
    lengths: tuple[int, ...]


def bucketed(sequences: Sequence[TokenSequence], tokens: int) -> list[Bucket]:
    """Return buckets of at most ``tokens`` tokens, padding included, shortest sequences first.

    A longer sequence is a bucket of its own. The order is deterministic.
    """
    groups = grouped([len(sequence) for sequence in sequences], tokens)
    return [_bucket(sequences, members) for members in groups]


def bucket_of(sequences: Sequence[TokenSequence]) -> Bucket:
    """Return one bucket of all sequences, in the order given."""
    return _bucket(sequences, list(range(len(sequences))))


def grouped(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return the places of groups whose count times longest is at most ``tokens``, in order."""
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        longest = lengths[place]  # of the group, too: the shortest come first
        if found and (len(found[-1]) + 1) * longest <= tokens:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def padded(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    """Return rows of numbers as a float32 tensor, padded with 0 on the right to ``width``."""
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])


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
        lengths=tuple(len(sequence) for sequence in chosen),
    )
