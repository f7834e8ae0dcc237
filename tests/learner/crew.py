"""Some updates by however many processes torchrun starts: ``-m tests.learner.crew ORDER``.

Rank 0 writes what came of them: gradients and weights as safetensors, figures and scores as JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from contracts.codec import to_json
from contracts.settings import Settings
from learner.adapters import load_policy
from learner.buckets import TokenSequence
from learner.experience import Experience
from learner.following import follow, lead
from learner.practice import read_practice
from learner.progress import Beside, Progress, advance
from learner.ranks import Ranks, join
from learner.train_state import TrainState, new_train_state

ASKED = [TokenSequence((9, 10, 11 + place), (20 + place, 3)) for place in range(9)]


class Batch(Struct, frozen=True):
    """What one update learns from."""

    fresh: list[Experience]
    beside: Beside = Beside()


class Order(Struct, frozen=True):
    """The settings, the batches to learn from, and where results go.

    ``others`` are the settings of the other processes, empty: the same. ``spoil``: they use
    gradients that are not quite those of all.
    """

    settings: dict[str, Any]
    batches: list[Batch]
    out: str
    others: dict[str, Any] = {}
    spoil: bool = False


def run(settings: Settings, batches: Sequence[Batch], out: Path, ranks: Ranks) -> TrainState:
    """Make the updates and write what came of them; return the state."""
    train = new_train_state(load_policy(settings, ranks), settings.learner)
    train.practice = read_practice(settings, train.policy.tokenizer)
    progress = Progress(policy="assistant", base=train.policy.base)
    lead(train, progress, settings)
    figures = []
    tensors: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches):
        progress = advance(train, progress, batch.fresh, settings, batch.beside)
        figures.append(msgspec.to_builtins(progress.stats))
        for name, parameter in train.policy.adapters().items():
            assert parameter.grad is not None
            tensors[f"gradient/{number}/{name}"] = parameter.grad.clone()
            tensors[f"weight/{number}/{name}"] = parameter.detach().clone()
    scores = train.policy.logprobs(ASKED, 16)
    branches = train.policy.branch_logprobs(ASKED, [4, 5], 16)
    drawn = train.policy.draw_each([(9, 10)] * 3, 6, torch.Generator().manual_seed(1))
    save_file(tensors, out / "tensors.safetensors")
    spread = sum(isinstance(one, DTensor) for one in train.policy.model.parameters())
    found = {
        "figures": figures,
        "scores": scores,
        "branches": branches,
        "drawn": drawn,
        "spread": spread,
    }
    (out / "found.json").write_bytes(to_json(found))
    return train


class Spoilt(Ranks):
    """A process whose sums are not those of the others."""

    def add_gradients(self, adapters: Mapping[str, nn.Parameter]) -> None:
        super().add_gradients(adapters)
        for one in adapters.values():
            assert one.grad is not None
            one.grad.mul_(1.001)


def main(text: str) -> None:
    """Lead, or follow."""
    order = msgspec.json.decode(Path(text).read_bytes(), type=Order)
    torch.set_num_threads(1)
    ranks = join()
    given = order.settings if ranks.leads else order.others or order.settings
    settings = msgspec.convert(given, Settings, dec_hook=lambda _, value: Path(value))
    if ranks.leads:
        run(settings, order.batches, Path(order.out), ranks)
        ranks.stop()
    else:
        follow(settings, Spoilt(ranks.rank, ranks.size) if order.spoil else ranks)


if __name__ == "__main__":
    main(sys.argv[1])
