"""What processes of a learner send each other arrives to the last bit, and is never run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from contracts.events import Sample
from contracts.settings import Settings
from learner.adapters import load_policy
from learner.anchor import Anchor
from learner.buckets import TokenSequence
from learner.experience import Experience, experience_of
from learner.following import ARGUMENTS
from learner.micro_batch import MicroBatch
from learner.parcels import packed, unpacked
from learner.practice import Practised
from learner.progress import Progress, advance
from learner.ranks import Order
from learner.revision import Debt
from learner.train_state import new_train_state

MakeSample = Callable[..., Sample]


def _sent(name: str, *arguments: Any) -> Any:
    """Return the arguments of an order as another process gets them."""
    order = unpacked(packed(Order(name, arguments)), Order)
    return msgspec.convert(order.arguments, ARGUMENTS[name])


@pytest.fixture
def rated(make_sample: MakeSample) -> tuple[Experience, ...]:
    return tuple(experience_of(make_sample(number), offset=number) for number in range(8))


def test_a_batch_and_an_anchor_arrive_as_they_were(rated: tuple[Experience, ...]) -> None:
    drawn = Practised(TokenSequence((1, 2), (3,), 0.1), 1.0, 1 / 3, (-1e-300,))
    batch = MicroBatch(
        fresh=rated,
        owed=(Debt(rated[0], 0.1, -1.1),),
        activity={"u1": 7},
        correction_weights={rated[1].decision_id: 1 / 3},
        practised=(drawn,),
        pace=0.3,
    )
    weights = {"a": torch.randn(3, 4).to(torch.bfloat16), "b": torch.tensor(0.1)}

    found, anchor = _sent("update", batch, Anchor("v1", weights))

    assert found == batch
    assert anchor.version == "v1"
    assert all(torch.equal(anchor.weights[name], one) for name, one in weights.items())
    assert _sent("update", batch, None)[1] is None


def test_a_training_state_arrives_as_it_was(
    settings: Settings, rated: tuple[Experience, ...]
) -> None:
    train = new_train_state(load_policy(settings), settings.learner)
    first = Progress(policy="assistant", base=train.policy.base)
    progress = advance(train, first, rated, settings)
    steps = {"step": torch.tensor(3), "none": torch.zeros(0, 4), "turned": torch.randn(2, 3).T}

    tensors, found = _sent("apply", steps, progress)

    assert found == progress
    assert all(torch.equal(tensors[name], one) for name, one in steps.items())
    tensors["turned"].add_(1.0)  # the optimizer steps in place


def test_a_generator_draws_what_it_would_have_drawn() -> None:
    mine = torch.Generator().manual_seed(5)
    torch.rand(3, generator=mine)

    _, _, other, _ = _sent("draw_each", [(1, 2)], 4, mine, 1.0)

    assert torch.equal(torch.rand(9, generator=other), torch.rand(9, generator=mine))


def test_numbers_that_are_none_arrive_too() -> None:
    found = unpacked(packed({3: [float("nan"), float("-inf"), 0.1]}))

    assert repr(found) == "{3: [nan, -inf, 0.1]}"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_that_a_stranger_sends_is_not_run(tmp_path: Path) -> None:
    sent = pickle.dumps(Bomb(tmp_path / "ran"))

    with pytest.raises(msgspec.MsgspecError):
        unpacked(sent, Order)
    with pytest.raises(msgspec.MsgspecError):
        unpacked(sent)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(TypeError, match="a Bomb cannot be sent to the other processes; give"):
        packed([Bomb(tmp_path / "ran")])


def test_nothing_in_the_learner_exchanges_pickles() -> None:
    folder = Path(__file__).parents[2] / "learner"
    found = [
        (path.name, word)
        for path in folder.rglob("*.py")
        for word in ("_object_list(", "gather_object(", "pickle.load", "torch.load(")
        if word in path.read_text()
    ]

    assert found == []
