"""What the other processes of a learner do: take part in whatever rank 0 calls, until it stops.

They read no topic and write nothing. Their policy and training state are those of rank 0, by what
it sends at its start, and stay so because all make the same steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Generator, Tensor

from contracts.settings import Settings
from learner import checkpoint
from learner.adapters import load_policy, restore_adapters
from learner.anchor import Anchor
from learner.buckets import TokenSequence
from learner.micro_batch import MicroBatch
from learner.policy import Policy
from learner.progress import Progress
from learner.publish import code_version, computed_by, what_matters
from learner.ranks import STOP, Order, Ranks
from learner.train_state import TrainState, new_train_state
from learner.update import update

APPLY = "apply"
_METHODS: dict[str, Callable[..., object]] = {
    one.__name__: one for one in (Policy.logprobs, Policy.branch_logprobs, Policy.draw_each)
}
"""What of the policy rank 0 may have all run, by the name that it sends."""

ARGUMENTS: dict[str, Any] = {
    APPLY: tuple[dict[str, Tensor], Progress],
    update.__name__: tuple[MicroBatch, Anchor | None],
    Policy.logprobs.__name__: tuple[list[TokenSequence], int],
    Policy.branch_logprobs.__name__: tuple[list[TokenSequence], list[int], int],
    Policy.draw_each.__name__: tuple[list[list[int]], int, Generator, float],
}
"""What comes with an order, by its name."""

_log = logging.getLogger("learner")


def lead(train: TrainState, progress: Progress, settings: Settings) -> None:
    """Give the other processes the training state that rank 0 begins with, and keep them alive.

    RanksError when one of them would compute with other settings, another base or release.
    """
    ranks = train.policy.ranks
    if ranks.size > 1:
        with train.policy.together(APPLY, checkpoint.tensors_of(train), progress):
            ranks.check_alike(_computes_with(train.policy, settings))
            train.told_anchor = train.anchor
        ranks.keep_alive()


def follow(settings: Settings, ranks: Ranks) -> None:
    """Take part until rank 0 stops; RanksError when it is gone or silent for long."""
    torch.set_num_threads(settings.learner.threads)
    train = new_train_state(load_policy(settings, ranks), settings.learner)
    _log.info("process %d of %d takes part", ranks.rank, ranks.size)
    while (order := ranks.receive()).name != STOP.name:
        with ranks.inside():
            _run(order, train, settings)
    ranks.leave()
    _log.info("process %d of %d ends with the first", ranks.rank, ranks.size)


def _run(order: Order, train: TrainState, settings: Settings) -> None:
    """Run what all run: a method of the policy, an update, or setting the state."""
    if order.name == APPLY:  # those of another base may not even fit
        train.policy.ranks.check_alike(_computes_with(train.policy, settings))
    if order.adapters is not None:
        restore_adapters(train.policy, order.adapters)
    arguments = msgspec.convert(order.arguments, ARGUMENTS[order.name])
    if order.name == APPLY:
        tensors, progress = arguments
        checkpoint.apply(train, tensors, progress)
    elif order.name == update.__name__:
        batch, anchor = arguments
        if anchor is not None:
            train.anchor = anchor
        update(train, batch, settings.learner, settings.engine.max_model_len)
    else:
        _METHODS[order.name](train.policy, *arguments, **order.keywords)


def _computes_with(policy: Policy, settings: Settings) -> dict[str, Any]:
    """Return what a process makes its share of the passes with; what practice draws is sent."""
    return {
        "policy.model": policy.base,
        "release": code_version(),
        "learner": what_matters(settings.learner, ""),
        "engine": {"max_model_len": settings.engine.max_model_len},
        **computed_by(policy),
    }
