"""The training state: what an update changes, and what a checkpoint keeps of it as tensors."""

from __future__ import annotations

import torch
from torch import nn

from contracts.settings import Learner
from learner.anchor import Anchor
from learner.constraint import first_multiplier
from learner.device import adam
from learner.policy import Policy
from learner.practice import Practice
from learner.safe_answer import safe_answer_ids
from learner.value import Spread, ValueHead

USER_FEATURES = 1


class TrainState:
    """All that an update changes: adapters, baseline, both optimizers, spread and λ.

    And the anchor, which `learner.progress.advance` refreshes between updates; ``told_anchor`` is
    the one that the other processes of this learner have.
    """

    def __init__(self, policy: Policy, config: Learner) -> None:
        self.policy = policy
        self.value = ValueHead(policy.hidden_size, USER_FEATURES, config.seed)
        self.optimizer = adam(policy.adapters().values(), config.learning_rate)
        self.value_optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.value.parameters(), lr=config.value_learning_rate, weight_decay=0.0
        )
        self.spread = Spread()
        self.multiplier = first_multiplier(config.constraint)
        self.safe_ids = safe_answer_ids(policy.tokenizer, config.constraint)
        self.anchor = Anchor()
        self.told_anchor = self.anchor
        self.practice: Practice | None = None

    def stepped(self) -> dict[str, nn.Parameter]:
        """Return all that an optimizer steps, by name: adapters and baseline."""
        value = {f"value/{name}": one for name, one in self.value.named_parameters()}
        return {**self.policy.adapters(), **value}


def new_train_state(policy: Policy, config: Learner) -> TrainState:
    """Return a fresh state around a policy; equal seeds give equal states."""
    return TrainState(policy, config)
